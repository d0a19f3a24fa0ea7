"""The files of a dataset repository, brought into a folder: from the Hugging Face Hub, or from a mirror on disk.

First step of `prepare`: **repository -> DIR/NAME** -> tokenize. The first call lists the repository's files and writes the
list down with the commit it was made of; later ones go on from that list (hub_listing.py).

    DIR/NAME/.listing.json      repository, commit, and path, size and SHA-256 of every file
    DIR/NAME/data/x.parquet     the files under the repository's own paths; links, if they come from a mirror
"""

import errno
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import Any

from data_tools.catalogue import CatalogueEntry
from data_tools.hub_listing import LISTING, MIRROR, HubFile, Listing, glob_to_regex, has_file, kept_listing, spaced
from smol_config import UserError
from smol_console import Progress
from smol_data.manifest import sha256_of_file
from smol_files import write_whole

GIGABYTE = 10**9
TRIES = 6
FIRST_WAIT = 2.0  # seconds before the second try; doubled before each further one
POINTER = b"version https://git-lfs.github.com/spec/"


class MissingText(UserError):
    """Text that is not within reach from here: the run's other datasets can still be prepared."""


class Hub:
    """Where repositories come from: the Hub (endpoint, token and cache as huggingface_hub's variables say) or a mirror."""

    def __init__(self, mirror: Path | None = None, downloads: int = 8) -> None:
        """`mirror` holds repositories as folders org/name; `downloads` files are fetched at a time."""
        self.mirror, self.downloads = mirror, downloads
        self._out_of_reach: str | None = None
        self._has_answered = False

    def listing(self, entry: CatalogueEntry, folder: Path, max_gigabytes: int | None = None) -> Listing:
        """The list kept in `folder`, or a new one, which is not yet written.

        Of more than `max_gigabytes` of files, evenly spaced ones are taken up to that size, and at least one. Raises
        MissingText when the repository is not within reach or has no such file, UserError when the kept list is of other
        files than those asked for.
        """
        assert entry.repository is not None, "an entry that can be prepared names its repository"
        if (kept := kept_listing(folder)) is not None:
            asked = {"repository": entry.repository, "revision": entry.revision, "patterns": entry.files}
            for name, value in {**asked, "max_gigabytes": max_gigabytes}.items():
                if getattr(kept, name) != value:
                    raise UserError(
                        f"{folder} was fetched with {name} {getattr(kept, name)!r}, asked for is {value!r}; "
                        "ask for the former again, or remove the folder"
                    )
            return kept
        commit, files = self._files_of_mirror(entry) if self.mirror else self._files_of_hub(entry)
        matches = re.compile("|".join(map(glob_to_regex, entry.files)))
        wanted = sorted((file for file in files if matches.fullmatch(file.path)), key=lambda file: file.path)
        if not wanted:
            raise MissingText(
                f"{entry.repository} at {entry.revision} has no file like {', '.join(entry.files)}; "
                "mend the patterns in the catalogue"
            )
        if max_gigabytes is not None:
            wanted = spaced(wanted, max_gigabytes * GIGABYTE)
        return Listing(
            repository=entry.repository,
            revision=entry.revision,
            commit=commit,
            patterns=entry.files,
            max_gigabytes=max_gigabytes,
            files=wanted,
        )

    def fetch(self, listing: Listing, folder: Path) -> None:
        """Bring all files of the list into `folder`; those that are there stay as they are.

        Raises MissingText when the Hub does not give a file in TRIES tries; the files that came are kept.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / LISTING, listing.model_dump_json(indent=1))
        missing = listing.missing(folder)
        if self.mirror:
            for file in missing:
                self._link(listing, file, folder)
        elif missing and listing.commit == MIRROR:
            raise MissingText(f"{folder} was linked from a mirror and misses {missing[0].path}; give it with --hub-root")
        else:
            self._download_all(listing, missing, folder)

    # --- a mirror ----------------------------------------------------------------------------------------------------

    def _files_of_mirror(self, entry: CatalogueEntry) -> tuple[str, list[HubFile]]:
        assert self.mirror is not None and entry.repository is not None
        root = self.mirror / entry.repository
        if not root.is_dir():
            raise MissingText(f"{root} is not there; put a copy of the repository into the mirror")
        files = []
        for path in root.rglob("*"):
            name = path.relative_to(root).as_posix()
            if path.is_file() and not name.startswith((".git/", ".cache/")):
                files.append(HubFile(path=name, bytes=path.stat().st_size))
        return MIRROR, files

    def _link(self, listing: Listing, file: HubFile, folder: Path) -> None:
        assert self.mirror is not None
        source, target = (self.mirror / listing.repository / file.path).resolve(), folder / file.path
        if not has_file(source, file.bytes):
            raise MissingText(f"{source} is not the file of {file.bytes:,} bytes that was listed; mend the mirror")
        with source.open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                raise MissingText(f"{source} is a Git LFS pointer, not the file; run git lfs pull in the mirror's clone")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(source)

    # --- the Hub -----------------------------------------------------------------------------------------------------

    def _files_of_hub(self, entry: CatalogueEntry) -> tuple[str, list[HubFile]]:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        assert entry.repository is not None
        api, name = HfApi(), entry.repository
        commit = str(self._ask(name, entry.revision, lambda: api.dataset_info(name, revision=entry.revision).sha))
        tree = self._ask(
            name,
            entry.revision,
            lambda: list(api.list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")),
        )
        files = [
            HubFile(path=item.path, bytes=item.size, sha256=item.lfs.sha256 if item.lfs else None)
            for item in tree
            if isinstance(item, RepoFile)
        ]
        return commit, files

    def _download_all(self, listing: Listing, files: list[HubFile], folder: Path) -> None:
        with (
            Progress(f"fetching {listing.repository}", "bytes", total=sum(file.bytes for file in files)) as progress,
            ThreadPoolExecutor(self.downloads) as threads,
        ):
            received = _Received(progress)
            try:
                for download in as_completed(
                    [threads.submit(self._download, listing, file, folder, received) for file in files]
                ):
                    download.result()
            except BaseException:
                received.stop()
                threads.shutdown(cancel_futures=True)
                raise
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's notes, and files that a killed download left

    def _download(self, listing: Listing, file: HubFile, folder: Path, received: "_Received") -> None:
        from huggingface_hub import hf_hub_download

        path = folder / file.path

        def download() -> None:
            path.unlink(missing_ok=True)  # a file that is there, whatever its size, would be taken for what was asked
            with received.file() as counter:
                hf_hub_download(
                    listing.repository,
                    file.path,
                    repo_type="dataset",
                    revision=listing.commit,
                    local_dir=folder,
                    tqdm_class=counter,
                )
                self._has_answered = True
                if not has_file(path, file.bytes) or (file.sha256 and sha256_of_file(path) != file.sha256):
                    path.unlink(missing_ok=True)
                    raise OSError(f"{file.path} did not come as the Hub's list says")

        self._ask(listing.repository, listing.commit, download)

    def _ask(self, repository: str, revision: str, question: Callable[[], Any]) -> Any:
        """The Hub's answer, in TRIES tries; raises MissingText with the reason and what to do.

        A Hub that has never answered is asked once in the whole run: a node without internet is told at once.
        """
        from huggingface_hub.errors import (
            GatedRepoError,
            RemoteEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        for attempt in range(TRIES):
            if self._out_of_reach:
                raise MissingText(self._out_of_reach)
            try:
                answer = question()
                self._has_answered = True
                return answer
            except GatedRepoError as error:
                raise MissingText(
                    f"{repository} is gated; accept its terms at https://huggingface.co/datasets/{repository} and set HF_TOKEN"
                ) from error
            except (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError) as error:
                raise MissingText(
                    f"{repository} at {revision} is not on the Hub or not open to you; mend the catalogue or set HF_TOKEN"
                ) from error
            except Exception as error:  # connections that break, servers that are busy, files that come in part
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise
                reason = (str(error) or type(error).__name__).strip().split("\n")[0]
                if not self._has_answered:
                    self._out_of_reach = f"the Hub is not within reach ({reason}); go where it is, or give --hub-root"
                elif attempt + 1 < TRIES:
                    time.sleep(FIRST_WAIT * 2**attempt)
        raise MissingText(f"{repository}: {reason}, in {TRIES} tries; give the same command again to go on")


class _Stopped(BaseException):
    """Ends a download from within, past every handler of errors that would try again."""


class _Received:
    """Counts the bytes that all downloads receive, through the progress bars that huggingface_hub asks for."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self._lock, self._stopped = progress, Lock(), Event()

    def stop(self) -> None:
        """End all downloads when their next bytes come."""
        self._stopped.set()

    @contextmanager
    def file(self) -> Iterator[type[Any]]:
        """A class of progress bar for one file; what it counted is taken back when the file does not come."""
        from tqdm import tqdm

        count = 0

        class Counter(tqdm):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **{**options, "disable": True})

            def update(bar, size: float | None = 1) -> None:
                nonlocal count
                if self._stopped.is_set():
                    raise _Stopped
                count += int(size or 0)
                self._advance(int(size or 0))

        try:
            yield Counter
        except BaseException:
            self._advance(-count)
            raise

    def _advance(self, size: int) -> None:
        with self._lock:
            self.progress.advance(size)
