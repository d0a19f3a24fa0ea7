"""What the Hub's double keeps and how it answers; hub_writes_double.py puts it on a port.

Strict where a push could go wrong: a large file is taken only if its SHA-256 is the announced one; a commit is refused when it
names a large file that has not arrived, is 412 when its parent is not the branch's head, and 404 when it deletes what is not
there. Blob ids are git's. A token may write to some namespaces. Not here: xet, files in several parts, rate limits, quotas.
"""

import base64
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, words: str, code: str | None = None, **extra: Any) -> None:
        super().__init__(words)
        self.status, self.code = status, code
        self.content = {"error": words, **extra}


class Request(NamedTuple):
    token: str
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Entry(NamedTuple):
    """A file of a commit."""

    blob: str
    size: int
    sha256: str | None = None
    """Of a large file."""


class Commit(NamedTuple):
    title: str
    parent: str | None
    files: dict[str, Entry]


@dataclass
class Repository:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> str:
        """The commit that a branch, a tag or its own id names."""
        found = self.branches.get(revision) or self.tags.get(revision)
        if not found and revision not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found or revision

    def files(self, revision: str) -> dict[str, Entry]:
        return self.commits[self.find(revision)].files

    def add(self, branch: str, title: str, files: dict[str, Entry]) -> str:
        """A commit on top of a branch; returns its id."""
        parent = self.branches.get(branch)
        oid = hashlib.sha1(f"{parent} {title} {sorted(files)} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = Commit(title, parent, files)
        self.branches[branch] = oid
        return oid

    def history(self, revision: str) -> list[tuple[str, Commit]]:
        """Commits, the newest first."""
        oid: str | None = self.find(revision)
        found = []
        while oid:
            found.append((oid, self.commits[oid]))
            oid = self.commits[oid].parent
        return found


class Hub:
    """All repositories, and the answers; each function is named as the route's kind and takes what the route's path names."""

    def __init__(self) -> None:
        self.address = ""
        self.repositories: dict[str, Repository] = {}
        self.contents: dict[str, bytes] = {}
        """By blob id, and large files by SHA-256."""
        self.tokens: dict[str, set[str]] = {"hf_writer": {"me"}, "hf_reader": set()}
        """The namespaces that a token may write to."""
        self.arrived: Counter[str] = Counter()
        """How often each large file, by SHA-256, was received to its end."""

    def new(self, name: str, private: bool = True) -> Repository:
        """A repository with its first commit."""
        self.repositories[name] = repository = Repository(private)
        repository.add("main", "initial commit", {".gitattributes": self.keep(b"*.safetensors filter=lfs\n")})
        return repository

    def keep(self, content: bytes) -> Entry:
        """Take in a small file."""
        blob = git_blob(content)
        self.contents[blob] = content
        return Entry(blob, len(content))

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds beside .gitattributes."""
        files = self.repositories[name].files(revision)
        return {path: self.contents[e.sha256 or e.blob] for path, e in files.items() if path != ".gitattributes"}

    def titles(self, name: str, revision: str = "main") -> list[str]:
        """Titles of a revision's commits, the newest first."""
        return [commit.title for _, commit in self.repositories[name].history(revision)]

    def readable(self, request: Request, name: str) -> Repository:
        repository = self.repositories.get(name)
        if repository is None or (repository.private and request.token not in self.tokens):
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, request: Request, name: str) -> Repository:
        self.check_token(request, name.split("/")[0])
        return self.readable(request, name)

    def check_token(self, request: Request, namespace: str) -> None:
        if request.token not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if namespace not in self.tokens[request.token]:
            raise Refusal(403, f"You don't have the rights to write to {namespace}")

    # --- repositories, branches, tags ------------------------------------------------------------------------------------

    def create(self, request: Request) -> Any:
        wanted = request.json
        self.check_token(request, wanted["organization"])
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.repositories:
            raise Refusal(409, "You already created this repo")
        self.new(name, private=wanted.get("visibility") == "private")
        return {"url": f"{self.address}/{name}"}

    def refs(self, request: Request, name: str) -> Any:
        repository = self.readable(request, name)
        named = {"branches": repository.branches, "tags": repository.tags, "converts": {}}
        return {
            kind: [{"name": ref, "ref": f"refs/{ref}", "targetCommit": oid} for ref, oid in refs.items()]
            for kind, refs in named.items()
        }

    def commits(self, request: Request, name: str, revision: str) -> Any:
        shared = {"message": "", "authors": [{"user": "me"}], "date": "2026-01-01T00:00:00.000Z"}
        history = self.readable(request, name).history(revision)
        return [{"id": oid, "title": commit.title, **shared} for oid, commit in history]

    def branch(self, request: Request, name: str, revision: str) -> Any:
        repository = self.writable(request, name)
        if revision in repository.branches:
            raise Refusal(409, "Reference already exists")
        repository.branches[revision] = repository.find(request.json.get("startingPoint", "main"))
        return {}

    def tag(self, request: Request, name: str, revision: str) -> Any:
        repository, tag = self.writable(request, name), request.json["tag"]
        if tag in repository.tags:
            raise Refusal(409, "Tag already exists")
        repository.tags[tag] = repository.find(revision)
        return {}

    def info(self, request: Request, name: str, revision: str = "main") -> Any:
        repository = self.readable(request, name)
        return {"_id": "0", "id": name, "sha": repository.find(revision), "private": repository.private}

    # --- files -----------------------------------------------------------------------------------------------------------

    def tree(self, request: Request, name: str, revision: str) -> Any:
        entries = []
        for path, (blob, size, sha256) in sorted(self.readable(request, name).files(revision).items()):
            large = {"lfs": {"oid": sha256, "size": size, "pointerSize": 130}} if sha256 else {}
            entries.append({"type": "file", "path": path, "oid": blob, "size": size, **large})
        return entries

    def preupload(self, request: Request, name: str, revision: str) -> Any:
        files = self.writable(request, name).files(revision)
        answers = []
        for wanted in request.json["files"]:
            path, sample = wanted["path"], base64.b64decode(wanted["sample"])
            large = path.endswith(".safetensors") or b"\0" in sample or wanted["size"] >= 10**7
            there = {"oid": files[path].sha256 or files[path].blob} if path in files else {}
            answers.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **there})
        return {"files": answers}

    def batch(self, request: Request, name: str) -> Any:
        self.writable(request, name)
        objects = []
        for wanted in request.json["objects"]:
            places = {action: {"href": f"{self.address}/{action}/{wanted['oid']}"} for action in ("upload", "verify")}
            objects.append(wanted if wanted["oid"] in self.contents else wanted | {"actions": places})
        return {"transfer": "basic", "objects": objects}

    def upload(self, request: Request, oid: str) -> Any:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "the content has another SHA-256")
        self.arrived[oid] += 1
        self.contents[oid] = request.body
        return {}

    def verify(self, request: Request, oid: str) -> Any:
        if len(self.contents.get(oid, b"")) != request.json["size"]:
            raise Refusal(404, "the object is not there")
        return {}

    def card(self, request: Request) -> Any:
        if "license: none-such" in request.json["content"]:
            raise Refusal(400, "no such license", errors=[{"message": "no such license"}])
        return {"errors": [], "warnings": []}

    def commit(self, request: Request, name: str, revision: str) -> Any:
        repository = self.writable(request, name)
        header, *changes = [json.loads(line) for line in request.body.splitlines()]
        if header["value"].get("parentCommit") not in (None, repository.branches[revision]):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.files(revision))
        for change in changes:
            self.change(files, change["key"], change["value"])
        oid = repository.add(revision, header["value"]["summary"], files)
        return {"commitOid": oid, "commitUrl": f"{self.address}/{name}/commit/{oid}", "pullRequestUrl": None}

    def change(self, files: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = self.keep(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in self.contents:
                raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {value['size']}\n"
            files[path] = Entry(git_blob(pointer.encode()), value["size"], value["oid"])
        elif key == "deletedFile" and path in files:
            del files[path]
        else:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")

    def resolve(self, request: Request, name: str, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        """A file's content, and the headers that name it."""
        repository = self.readable(request, name)
        entry = repository.files(revision).get(path)
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        content = entry.sha256 or entry.blob
        return self.contents[content], {"X-Repo-Commit": repository.find(revision), "ETag": f'"{content}"'}


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
