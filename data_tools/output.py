"""Result folders that appear whole or not at all. Every command of data_tools writes its folder through this file.

`whole_folder` is for results made in one go, `resumable_folder` for those made in many parts over hours: there a killed
command, given again, checks the finished parts and goes on with the others.
"""

import fcntl
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from smol_config import Section, UserError
from smol_data.manifest import FileEntry, sha256_of_file
from smol_files import write_whole

REPORT_NAME = "report.json"
"""What a command tells of its result, beside the data; no manifest lists it, since it decides no token."""


def check_new_folder(folder: Path) -> Path:
    """The resolved path of a result folder; raises UserError unless it is missing or an empty folder."""
    folder = folder.resolve()
    if folder.is_dir():
        if any(folder.iterdir()):
            sweep(folder)
            raise UserError(f"{folder} is not empty; name a new folder, or remove this one first")
        if folder.is_mount():
            raise UserError(f"{folder} is a mount point, which cannot be replaced as a whole; name a folder inside it")
    elif folder.exists():
        raise UserError(f"{folder} is a file; name a new folder")
    return folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a working folder beside `folder` that takes its name at the end of the block; on any fault it is removed.

    The working folder is a sibling because a rename is atomic only within one file system. Raises UserError when `folder`
    is in use or when the disk refuses a write.
    """
    folder = check_new_folder(folder)
    missing_parents = [parent for parent in folder.parents if not parent.exists()]
    working = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    try:
        working.mkdir(parents=True)
        yield working
        working.rename(folder)
    except BaseException as error:
        shutil.rmtree(working, ignore_errors=True)
        _remove_empty(missing_parents)
        if isinstance(error, OSError):
            raise _refused(folder, error) from error
        raise


def check_file(path: Path) -> Path:
    """`path`, if a result file can be written there; raises UserError when its folder is missing or it is itself a folder."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    return path


def _refused(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"{folder} cannot be written: {reason}; check its place, rights and free space")


def _remove_empty(folders: Iterable[Path]) -> None:
    """Take away folders that were made for a result that did not come; nearest first, those in use are left alone."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


# --- results made in parts ---------------------------------------------------------------------------------------------


class Part(Section):
    """The record of a finished part: the files that it made, and what its command wants to know of it later."""

    files: list[FileEntry]
    details: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Working:
    """The working folder of a result that is made in parts. It can be pickled: workers, on other nodes too, are given it.

    .NAME.partial/lock            held (flock) by the command at work, which is named inside
                  settings.json   what the parts are made with
                  files/          the finished parts' files; takes the result's name at the end
                  parts/P.json    the record of finished part P, written after its files; P.fault: why it failed
                  attempts/       parts being made, one folder an attempt
                  jobs            ids of the Slurm jobs that the work was given to
    """

    target: Path
    """The result's folder."""

    @property
    def root(self) -> Path:
        return self.target.parent / f".{self.target.name}.partial"

    @property
    def files(self) -> Path:
        return self.root / "files"

    @property
    def logs(self) -> Path:
        """Where jobs elsewhere write their logs; it outlives the working folder."""
        return self.target.parent / f".{self.target.name}.logs"

    @property
    def jobs(self) -> list[str]:
        """The Slurm jobs that the work was given to, whether or not they still run."""
        path = self.root / "jobs"
        return path.read_text(encoding="utf8").split() if path.is_file() else []

    def hand_over(self, jobs: Iterable[str]) -> None:
        """Note that these Slurm jobs go on with the work; the folder is kept for them."""
        write_whole(self.root / "jobs", " ".join(jobs))

    def record(self, part: str) -> Part | None:
        """The record of a part; None when it is not finished."""
        try:
            return Part.model_validate_json(self._record_file(part).read_text(encoding="utf8"))
        except (FileNotFoundError, ValidationError):
            return None

    def finished(self) -> list[str]:
        """Names of the parts that are recorded as finished."""
        return sorted(path.stem for path in (self.root / "parts").glob("*.json"))

    def verified(self, part: str) -> Part | None:
        """The record of a part whose files all hash as recorded; None when the part is to be made, or made again."""
        record = self.record(part)
        damaged = [entry.name for entry in record.files if not _is_whole(self.files / entry.name, entry)] if record else []
        if damaged:
            print(f"part {part} is made again: {damaged[0]} is not what was written", file=sys.stderr, flush=True)
            self._record_file(part).unlink(missing_ok=True)
            return None
        return record

    @contextmanager
    def attempt(self, part: str) -> Iterator[Path]:
        """A new folder to make a part in, so that two workers at one part never write to one file; it goes afterwards."""
        folder = Path(tempfile.mkdtemp(prefix=f"{part}-", dir=self.root / "attempts"))
        fault = self._fault_file(part)
        try:
            yield folder
            fault.unlink(missing_ok=True)
        except Exception as error:
            with suppress(OSError):  # a full disk, most likely
                fault.write_text(str(error), encoding="utf8")
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, part: str, attempt: Path, record: Part) -> Part:
        """Move the files that `record` lists out of the attempt, and write the record."""
        for entry in record.files:
            (attempt / entry.name).rename(self.files / entry.name)
        write_whole(self._record_file(part), record.model_dump_json())
        return record

    def all_parts(self, names: Iterable[str]) -> list[Part]:
        """The records of these parts, in order; raises UserError when one is missing or a file has not its recorded size."""
        records = []
        for name in names:
            if (record := self.record(name)) is None:
                fault = self._fault_file(name)
                why = f" ({fault.read_text(encoding='utf8')})" if fault.is_file() else ""
                raise UserError(f"part {name} of {self.target} is not finished{why}; give the same command again to go on")
            for entry in record.files:
                path = self.files / entry.name
                if not path.is_file() or path.stat().st_size != entry.bytes:
                    raise UserError(f"{path} is not what was written; check the disk and give the same command again to go on")
            records.append(record)
        return records

    def release(self) -> None:
        """Give `files` the result's name: the last step, when everything is in it."""
        self.files.rename(self.target)

    def _record_file(self, part: str) -> Path:
        return self.root / "parts" / f"{part}.json"

    def _fault_file(self, part: str) -> Path:
        return self.root / "parts" / f"{part}.fault"


def _is_whole(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.bytes and sha256_of_file(path) == entry.sha256


@contextmanager
def resumable_folder(folder: Path, settings: Mapping[str, Any], fresh: bool = False) -> Iterator[Working]:
    """Yield the locked working folder of `folder`; call its `release()` when everything is made.

    `settings` holds, as JSON values by name, all that decides the result's bytes: a working folder made with others is
    refused, unless `fresh` clears it away. A block that ends without `release()` leaves the working folder behind while it
    has a finished part, and says so; otherwise nothing stays. Raises UserError for a `folder` in use, another process at
    work on it, other settings, or a disk that refuses a write.
    """
    working = Working(check_new_folder(folder))
    missing_parents = [parent for parent in working.root.parents if not parent.exists()]
    try:
        working.root.mkdir(parents=True, exist_ok=True)
        with _locked(working.root / "lock", working.target):
            _set_up(working, json.loads(json.dumps(settings)), fresh)
            try:
                yield working
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(_kept(working) or str(stop)) from stop
            except Exception:
                if kept := _kept(working):
                    print(kept, file=sys.stderr, flush=True)
                raise
            finally:
                if not _in_use(working):
                    shutil.rmtree(working.root, ignore_errors=True)
                    _remove_empty(missing_parents)
    except OSError as error:
        raise _refused(folder, error) from error


def _in_use(working: Working) -> bool:
    return bool(working.jobs) or (working.files.is_dir() and any(working.files.iterdir()))


def _kept(working: Working) -> str:
    parts = len(working.finished()) if _in_use(working) else 0
    return f"{parts} finished parts are kept in {working.root}; the same command goes on with them" if parts else ""


def sweep(folder: Path) -> None:
    """Remove what the command that made `folder` left beside it, if it was killed after its last step, the release.

    A working folder that still has the place of the finished files, or that another command holds, is left alone.
    """
    working = Working(folder.resolve())
    if not working.root.is_dir() or working.files.exists():
        return
    with suppress(UserError), _locked(working.root / "lock", working.target):
        shutil.rmtree(working.root, ignore_errors=True)


@contextmanager
def _locked(path: Path, target: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the system gives back when the process ends, however it ends."""
    with path.open("a+", encoding="utf8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{target} is being written by {file.read() or 'another process'}; wait for it, or end it first"
            ) from None
        file.truncate(0)
        file.write(f"PID {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _set_up(working: Working, settings: Mapping[str, Any], fresh: bool) -> None:
    """Make the working folder, or check that it was made with these settings."""
    path = working.root / "settings.json"
    if not fresh and path.is_file() and working.files.is_dir():  # without files, what it was for has been released
        former = json.loads(path.read_text(encoding="utf8"))
        changes = [
            f"{name} was {former.get(name)!r} and is {settings.get(name)!r} now"
            for name in sorted({*former, *settings})
            if former.get(name) != settings.get(name)
        ]
        if changes:
            raise UserError(
                f"{working.root} holds parts made with other settings: {', '.join(changes)}; give the former settings to go "
                "on with them, or --fresh to start over"
            )
        (working.root / "jobs").unlink(missing_ok=True)
        shutil.rmtree(working.root / "attempts", ignore_errors=True)
        (working.root / "attempts").mkdir()
        return
    path.unlink(missing_ok=True)  # first: a folder without it is cleared by the next command, should this one be killed
    for old in working.root.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != "lock":
            old.unlink()
    for name in ("files", "parts", "attempts"):
        (working.root / name).mkdir()
    write_whole(path, json.dumps(settings, indent=2) + "\n")
