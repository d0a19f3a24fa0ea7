"""A branch of a repository on the Hugging Face Hub: large files go first, one by one, then one commit makes all of it count.

The Hub keeps a large file under its SHA-256 as soon as it has arrived, before any commit names it; asked again, it says that it
has it. So an upload that was killed sends none of those twice. The commit names its parent: it is made of what was listed, or
not at all. huggingface_hub tries the large files again by itself and the commit never, since an answer may get lost; the flow
looks at the branch first. The token is huggingface_hub's: HF_TOKEN, or that of `hf auth login`.
"""

import re
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, GitRefs, HfApi, RepoFile, get_token
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import disable_progress_bars, get_session, validate_repo_id

from conversion import ConversionError
from conversion.upload.hub_errors import explained
from conversion.upload.local_files import LocalFile
from conversion.upload.store import Difference, Listing, Remote

Answer = TypeVar("Answer")

SILENCE = 600.0
"""Seconds without a byte from the Hub, or taken by it, after which a request counts as failed."""
ATTRIBUTES = ".gitattributes"
"""The repository's own file: which files are large. Never removed."""
MEBIBYTE = 2**20


class HubBranch:
    """A branch as a place for a folder: a store.Store."""

    batch_bytes = 8 * MEBIBYTE

    def __init__(self, repository: str, branch: str, tag: str | None, public: bool, message: str) -> None:
        """`repository` is namespace/name. Raises ConversionError for names that the Hub does not take."""
        check_repository(repository)
        check_reference("--revision", branch)
        if tag is not None:
            check_reference("--tag", tag)
        if not message.strip():
            raise ConversionError("--message is empty; write what the commit is, or leave it out")
        self._api = HfApi()
        self.url = f"{self._api.endpoint}/{repository}/tree/{quote(branch)}"
        self._repository, self._branch, self._tag, self._public, self._message = repository, branch, tag, public, message
        self._head: str | None = None
        self._begun_at: str | None = None
        self._additions: dict[str, CommitOperationAdd] = {}
        self._obsolete: Sequence[str] = ()
        self._tagged: str | None = None

    # --- the place -------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the repository and the branch where they are missing."""
        if get_token() is None:
            raise ConversionError(f"{self.url}: there is no token; set HF_TOKEN, or log in with: hf auth login")
        refs = self._ask(self._refs)
        if refs is None:
            self._ask(self._api.create_repo, self._repository, private=not self._public, exist_ok=True)
            refs = self._ask(self._refs)
        if refs is None or self._branch not in {branch.name for branch in refs.branches}:
            self._ask(self._create_branch)

    def _create_branch(self) -> None:
        """From the repository's first commit, which has no weights: until ours is there, nobody takes others for them."""
        first = self._api.list_repo_commits(self._repository)[-1].commit_id
        self._api.create_branch(self._repository, branch=self._branch, revision=first, exist_ok=True)

    def listing(self) -> Listing:
        """The branch's files at its newest commit."""
        refs = self._ask(self._refs)
        if refs is None:
            kind = "public" if self._public else "private"
            return Listing(note=f"no such repository, or none that the token may see; it will be made, {kind}")
        self._head = {branch.name: branch.target_commit for branch in refs.branches}.get(self._branch)
        tag = self._tag if self._tag in {tag.name for tag in refs.tags} else None
        self._tagged = self._ask(self._api.model_info, self._repository, revision=tag).sha if tag else None
        if self._head is None:
            return Listing(note="no such branch; it will be made")
        files = self._ask(self._files, self._head)
        return Listing(files, whole=self._tag is None or self._tagged == self._head, commit=self._head)

    def _refs(self) -> GitRefs | None:
        """Branches and tags; None when there is no such repository, or the token may not see it."""
        try:
            refs = self._api.list_repo_refs(self._repository)
        except RepositoryNotFoundError:
            return None
        if self._branch in {tag.name for tag in refs.tags}:
            raise ConversionError(f"--revision {self._branch} is a tag of {self._repository}; give the name of a branch")
        return refs

    def _files(self, commit: str) -> dict[str, Remote]:
        """A commit's files by their path, but for the repository's own one."""
        tree = self._api.list_repo_tree(self._repository, recursive=True, revision=commit)
        return {entry.path: _remote(entry) for entry in tree if isinstance(entry, RepoFile) and entry.path != ATTRIBUTES}

    # --- the change ------------------------------------------------------------------------------------------------------

    def begin(self, difference: Difference) -> None:
        """Name what the commit will hold; refuse to move a tag."""
        if self._tagged and (difference.new or difference.obsolete or self._tagged != self._head):
            raise ConversionError(
                f"--tag {self._tag}: {self._repository} has that tag at commit {self._tagged[:8]}, which does not hold this "
                f"folder; give another tag"
            )
        if self._begun_at != self._head:  # what huggingface_hub keeps in an operation was asked of the branch as it was
            self._additions = {}
        self._begun_at, self._obsolete = self._head, difference.obsolete
        self._additions = {file.name: self._additions.get(file.name) or self._addition(file) for file in difference.new}

    def _addition(self, file: LocalFile) -> CommitOperationAdd:
        addition = self._ask(CommitOperationAdd, file.name, str(file.path))
        addition.upload_info.sha256 = bytes.fromhex(file.sha256)
        return addition

    def send(self, files: Sequence[LocalFile]) -> None:
        """Send those of the files that are large, unless the Hub has them; the others travel in the commit."""
        additions = [self._additions[file.name] for file in files]
        with nullcontext() if sys.stderr.isatty() else disable_progress_bars():
            self._ask(
                self._api.preupload_lfs_files,
                self._repository,
                additions,
                revision=self._branch,
                gitignore_content="",  # the folder is taken as it is
            )

    def finish(self) -> str | None:
        """The commit, unless only the tag is missing; then the tag."""
        operations = [*self._additions.values(), *(CommitOperationDelete(name, is_folder=False) for name in self._obsolete)]
        if operations:
            made = self._ask(
                self._api.create_commit,
                self._repository,
                operations,
                commit_message=self._message,
                revision=self._branch,
                parent_commit=self._head,
            )
            self._head = made.oid
        if self._tag is not None:
            self._ask(self._api.create_tag, self._repository, tag=self._tag, revision=self._head)
        return self._head

    def _ask(self, call: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer:
        """What a call to the Hub returns, with faults as sentences."""
        hooks = get_session().event_hooks
        if _bound_silence not in hooks["request"]:
            get_session().event_hooks = {**hooks, "request": [*hooks["request"], _bound_silence]}
        try:
            return call(*arguments, **options)
        except ConversionError:
            raise
        except Exception as error:
            if sentence := explained(error, self._api.endpoint, self._repository):
                raise sentence from error
            raise


def _bound_silence(request: httpx2.Request) -> None:
    """Called before each request: huggingface_hub would wait for ever."""
    request.extensions["timeout"] = httpx2.Timeout(SILENCE).as_dict()


def _remote(entry: RepoFile) -> Remote:
    if entry.lfs is not None:
        return Remote(entry.size, sha256=entry.lfs.sha256)
    return Remote(entry.size, git_blob=entry.blob_id)


def check_repository(name: str) -> None:
    """Raise ConversionError unless `name` is a namespace/name as the Hub takes them."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConversionError(
            f"{name} is no repository ({error}); write namespace/name, or a URL such as s3://bucket/prefix"
        ) from error
    if "/" not in name:
        raise ConversionError(f"{name} names no namespace; write namespace/{name}, with your user's or organisation's name")


def check_reference(option: str, name: str) -> None:
    """Raise ConversionError unless a branch or tag can have this name."""
    good = re.fullmatch(r"[A-Za-z0-9][\w.+-]*(/\w[\w.+-]*)*", name, re.ASCII)
    if not good or ".." in name or name.endswith((".", ".lock")) or re.fullmatch("[0-9a-f]{40}", name):
        raise ConversionError(
            f"{option} {name!r} is no name for a branch or tag; use letters, digits and . _ - + / as in stage1-step-40000"
        )
