"""Every whole checkpoint of a run to where checkpoint.upload says, beside the run; and back from there.

    python -m slurm.upload CONFIG [--watch] [section.key=value ...]
    python -m slurm.upload CONFIG --restore newest|STEP

    RUN/iter_N --its hashes are its marker's?--> UPLOAD/RUN_NAME/iter_N --all sizes there?--> note RUN/uploads/iter_N.json

RUN is train.output_dir. The oldest checkpoint without a note goes first; the trainer removes none that has no note. What is
done is on disk and at the target, so an uploader may be killed at any moment: the next one sends what is not there yet. It
never gives up while the run lives, and waits ever longer between tries. The work is done in child processes that give way
to training.

Exit code 0: done, or asked to stop. 2 and one sentence: what was given is faulty, or something could not be uploaded; in a
job 93, so that it is not started again.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from humanize import naturalsize

from conversion import ConversionError, Unreachable, background
from conversion.service import Later, Stop, say
from conversion.upload.download import download_folder, whole_folders
from conversion.upload.flow import upload
from conversion.upload.local_files import LocalFile, hash_all, local_files
from conversion.upload.objects import open_objects, open_store
from conversion.watching import rounds, sole_worker
from slurm.service import parser_for, service_exit_code, work_beside
from smol_config import UserError, load
from smol_train.checkpoint_folder import (
    PIN,
    UploadNote,
    aside,
    check_whole,
    folder_name,
    identity_of,
    note_of,
    note_path,
    read_listing,
    step_of,
    whole_checkpoints,
)
from smol_train.config import RunConfig

THREADS = 2
"""For hashing, beside s5cmd's own."""


class DamagedError(ConversionError):
    """A checkpoint whose files are not those that its marker lists: a copy of it would be worth nothing."""


class Uploader:
    """The one uploader of a run, which holds its lock."""

    def __init__(self, run: Path, target: str, every: float, stop: Stop) -> None:
        self.run, self.target, self.every, self.stop = run, target, every, stop
        self.later = Later(every)
        self.damaged: dict[str, str] = {}
        """Checkpoints that are not uploaded, by their digest, and why."""

    def work(self, once: bool) -> None:
        """Upload until the run is done and everything has arrived, or, with `once`, what is there now.

        Raises ConversionError for a target that cannot be used, and at the end when something is not uploaded.
        """
        try:
            self._try_the_target()
            say(f"uploading the checkpoints of {self.run} to {self.target}")
            for _ in rounds(self.run, self.every, once, lambda: self.later.waiting, self.stop):
                self._round()
        except background.Stopped:
            say("stopped")
            return
        if left := [*self.damaged.values(), *self.later.waiting.values()]:
            raise ConversionError(f"{len(left)} not uploaded: {'; '.join(left)}")
        say("all checkpoints are uploaded")

    def _try_the_target(self) -> None:
        """A wrong URL or wrong credentials are told before the run has been going for days."""
        try:
            background.call(_look, self.target, threads=THREADS, stop=self.stop)
        except (Unreachable, background.MayPass) as error:
            say(f"{error}; going on, since that may pass")

    def _round(self) -> None:
        """Everything that is due now, until the target does not answer."""
        for checkpoint in whole_checkpoints(self.run):
            if not self.later.is_due(self.target):
                return
            self._upload(checkpoint)

    def _upload(self, checkpoint: Path) -> None:
        url, identity = f"{self.target}/{checkpoint.name}", identity_of(checkpoint)
        note = note_of(checkpoint)
        if identity is None or identity[0] in self.damaged or (note and note.target == url):
            return
        started = time.monotonic()
        try:
            size = background.call(_send, checkpoint, url, threads=THREADS, stop=self.stop)
            if identity_of(checkpoint) != identity:
                raise ConversionError(f"{checkpoint} was changed while it was uploaded")
            seconds = time.monotonic() - started
            now = datetime.now(UTC).isoformat(timespec="seconds")
            _write_note(checkpoint, UploadNote(*identity, url, size, round(seconds, 1), now))
        except (UserError, OSError) as error:
            self._not_uploaded(checkpoint, identity, error)
            return
        self.later.done(self.target)
        say(f"uploaded {checkpoint} to {url}: {naturalsize(size)} in {seconds:.0f} s")

    def _not_uploaded(self, checkpoint: Path, identity: tuple[str, str], error: Exception) -> None:
        if identity_of(checkpoint) != identity:
            say(f"{checkpoint} was removed, set aside or saved again while it was uploaded; going on")
        elif isinstance(error, DamagedError):
            self.damaged[identity[0]] = str(error)
            say(f"{checkpoint} is NOT uploaded: {error}")
        else:
            self.later.put_off(self.target, f"{checkpoint} is not uploaded: {error}", getattr(error, "wait", 0.0))


def _write_note(checkpoint: Path, note: UploadNote) -> None:
    """On the disk, whole, when this returns."""
    path = note_path(checkpoint.parent, step_of(checkpoint))
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf8") as file:
        file.write(json.dumps(asdict(note), indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


# --- in a child ------------------------------------------------------------------------------------------------------------


def _look(target: str) -> None:
    open_objects(target).sizes()


def _send(checkpoint: Path, url: str) -> int:
    """Upload; returns the bytes of the checkpoint. Its files are hashed for the upload, so to compare them costs nothing."""
    files = local_files(checkpoint, wanted=lambda name: name != PIN)
    hash_all(files)
    if fault := _fault(files, checkpoint):
        raise DamagedError(f"{checkpoint} is damaged ({fault}); the trainer passes it over, remove it")
    upload(files, open_store(url, files))
    return sum(file.size for file in files)


def _fault(files: Sequence[LocalFile], checkpoint: Path) -> str | None:
    """What the marker lists otherwise."""
    try:
        listing = read_listing(checkpoint)
    except ValueError as error:
        return str(error)
    found = {file.name: (file.size, file.sha256) for file in files}
    differ = [name for name, stored in (listing or {}).items() if found.get(name) != (stored.bytes, stored.sha256)]
    return f"{', '.join(differ[:3])}: not as it was saved" if differ else None


# --- back from there -------------------------------------------------------------------------------------------------------


def restore(run: Path, target: str, step: int | None) -> None:
    """Bring the newest uploaded checkpoint, or that of `step`, back into the run's folder, which may be gone.

    Every file's SHA-256 is compared; until all are right the folder is iter_N.partial, and another call goes on with it.
    Holds the run's lock, so that no trainer starts from the beginning meanwhile. Raises ConversionError when there is none,
    or the step's is there already.
    """
    from smol_lock import LOCK_NAME

    with sole_worker(run / LOCK_NAME, "a run or a restore"):
        there = [int(name.removeprefix("iter_")) for name in whole_folders(target) if name.startswith("iter_")]
        if not there or (step is not None and step not in there):
            what = f"no checkpoint of step {step}" if there else "no checkpoint"
            steps = f"; there are steps {', '.join(map(str, sorted(there)))}" if there else ""
            raise ConversionError(f"{target} holds {what} that arrived whole{steps}")
        newest_here = max(map(step_of, whole_checkpoints(run)), default=-1)
        if step is None and newest_here >= max(there):
            say(f"nothing to bring back: {run} has step {newest_here}, {target} has up to {max(there)}")
            return
        folder = run / folder_name(max(there) if step is None else step)
        if folder.exists():
            raise ConversionError(f"{folder} is there already; move it away to bring its copy back")
        partial = aside(folder, "partial")
        size = download_folder(f"{target}/{folder.name}", partial)
        check_whole(partial)
        partial.rename(folder)
        say(f"brought back {folder}: {naturalsize(size)}")


# --- the command -----------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> None:
    config = load(RunConfig, options.config, options.overrides)
    run = Path(config.train.output_dir).absolute()
    if config.checkpoint.upload is None:
        raise ConversionError(f"{options.config}: checkpoint.upload is not set; set it to a URL such as s3://bucket/prefix")
    target = f"{config.checkpoint.upload.rstrip('/')}/{run.name}"
    if options.restore is not None:
        if not re.fullmatch(r"newest|\d+", options.restore):
            raise ConversionError(f"--restore {options.restore} is no checkpoint; give newest, or a step")
        restore(run, target, None if options.restore == "newest" else int(options.restore))
        return

    def work(stop: Stop) -> None:
        Uploader(run, target, options.every, stop).work(once=not options.watch)

    work_beside(run, options, "uploads/lock", "an uploader", work)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = parser_for("upload", __doc__)
    parser.add_argument("--restore", metavar="newest|STEP", help="bring that checkpoint back into the run's folder")
    options = parser.parse_intermixed_args(arguments)
    return service_exit_code(lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())
