"""`export --watch RUN`: every whole checkpoint of a run becomes RUN/hf/step_N, once, and is pushed to a branch of its own.

    RUN/iter_0040000 --to-hf, verified--> RUN/hf/step_40000 --push--> REPO, branch stable-step-40000

What is done is on disk (export_records.py), so an exporter may be killed and started again at any time. A checkpoint that does
not pass is recorded and left alone; what may pass (a full disk, a Hub that does not answer) is tried again, ever less often,
and holds up nothing else. The work is done in child processes that give way to training (background.py).

It ends when the run says in alerts.jsonl that it is done and nothing is left to do, on SIGTERM or SIGINT, or with --once
after what is there now.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from humanize import naturalsize

from conversion import ConversionError, ParityError, Unreachable, background
from conversion.export_records import (
    LOCK_NAME,
    UNKNOWN,
    Export,
    Records,
    export_name,
    revision_of,
    step_of_export,
)
from conversion.service import Later, Stop, say, stop_signals
from conversion.watching import rounds, sole_worker, wait_for
from smol_config import UserError
from smol_train.checkpoint_folder import MARKER, digest_of, free_bytes, read_model_config, step_of, whole_checkpoints

ITEM_BYTES = {"bf16": 2, "fp32": 4}
ROOM = 1.05
"""Free space asked for, over the weights' size; the tokenizer and the card come on top."""
ROOM_BYTES = 64 * 10**6


def run(arguments: argparse.Namespace) -> None:
    """The command, with the arguments of _add_export.

    Raises ConversionError when another exporter works on the run, for arguments that fit no checkpoint, and at the end when
    something could not be exported or pushed; ParityError when that is because an export is not equal.
    """
    run: Path = arguments.watch
    _check_run(run, arguments.once)
    with stop_signals() as stop:
        if wait_for(run, arguments.every, stop):
            with sole_worker(run / "hf" / LOCK_NAME, "an exporter"):
                Exporter(arguments, stop).work()


def _check_run(run: Path, once: bool) -> None:
    if (run / MARKER).exists():
        raise ConversionError(f"--watch {run} is one checkpoint; give its run's folder, or export it with to-hf")
    if run.exists() and not run.is_dir():
        raise ConversionError(f"--watch {run} is not a folder; give a run's folder (train.output_dir)")
    if once and not run.exists():
        raise ConversionError(f"--watch {run} is not there; give a run's folder (train.output_dir)")


class Exporter:
    """The one exporter of a run, which holds its lock."""

    def __init__(self, arguments: argparse.Namespace, stop: Stop) -> None:
        self.run: Path = arguments.watch
        self.hf = self.run / "hf"
        self.arguments, self.stop = arguments, stop
        self.target: str | None = arguments.push
        self.records = Records(self.hf)
        self.later = Later(arguments.every)
        self.refused: dict[str, str] = {}
        """Exports that were not pushed and need somebody to mend something first, and why."""
        if arguments.retry_failed:
            self.records.forget_failures()

    def work(self) -> None:
        """Export until there is nothing left to do, or until a stop is asked for."""
        self._clean_up()
        try:
            self._in_child(_check, self.arguments)
            say(f"exporting the checkpoints of {self.run} to {self.hf}{f', pushing to {self.target}' if self.target else ''}")
            for _ in rounds(self.run, self.arguments.every, self.arguments.once, lambda: self.later.waiting, self.stop):
                self._round()
        except background.Stopped:
            self._clean_up()
            say("stopped")
            return
        self._tell_what_is_left()

    def _round(self) -> None:
        """Everything that is due now."""
        for checkpoint in whole_checkpoints(self.run):
            self._push_all()
            self._export(checkpoint)
        self._push_all()

    def _clean_up(self) -> None:
        """Remove what a killed exporter left; what failed stays, with the reason inside."""
        for partial in self.hf.glob("step_*.partial"):
            export = self.records.exports.get(step_of_export(partial))
            if not (export and export.failed):
                shutil.rmtree(partial, ignore_errors=True)
                say(f"removed {partial}, which was not finished")

    # --- exporting -----------------------------------------------------------------------------------------------------------

    def _export(self, checkpoint: Path) -> None:
        step, digest = step_of(checkpoint), digest_of(checkpoint)
        folder = self.hf / export_name(step)
        if digest is None or not self._is_due(folder, self.records.exports.get(step), digest):
            return
        try:
            if shortage := self._shortage(checkpoint):
                self.later.put_off(folder.name, f"{folder} is not made: {shortage}")
                return
            if folder.exists():  # a rollback deleted the checkpoint that it is of
                say(f"{checkpoint} was saved again since it was exported: {folder} is made anew")
                shutil.rmtree(folder)
            self.records.add("exporting", step, checkpoint=digest, revision=revision_of(checkpoint))
            started = time.monotonic()
            self._in_child(_convert, checkpoint, folder, self.arguments)
            self.records.add("exported", step, seconds=round(time.monotonic() - started, 1))
            self.later.done(folder.name)
            say(f"exported {folder}")
        except (UserError, OSError, ValueError, TypeError, LookupError) as error:  # the last of a damaged state.json
            self._not_exported(checkpoint, digest, error)

    def _is_due(self, folder: Path, export: Export | None, digest: str) -> bool:
        """Whether to export the checkpoint of this digest to `folder` now, of which the records say `export`."""
        if export and export.failed and export.checkpoint == digest:
            return False
        if folder.exists() and (export is None or export.checkpoint in (UNKNOWN, digest)):
            self.later.done(folder.name)
            return False
        return self.later.is_due(folder.name)

    def _shortage(self, checkpoint: Path) -> str | None:
        """Why there is no room for an export."""
        weights = read_model_config(checkpoint).parameters * ITEM_BYTES[self.arguments.dtype]
        needed, free = int(ROOM * weights) + ROOM_BYTES, free_bytes(self.hf)
        return None if free >= needed else f"it needs {naturalsize(needed)} and {naturalsize(free)} are free; make room"

    def _not_exported(self, checkpoint: Path, digest: str, error: Exception) -> None:
        folder = self.hf / export_name(step_of(checkpoint))
        partial = folder.with_name(f"{folder.name}.partial")
        gone, reason = digest_of(checkpoint) != digest, str(error) or type(error).__name__
        if gone or not (partial / "parity.json").exists():  # which says why an export is not equal
            shutil.rmtree(partial, ignore_errors=True)
        if gone:
            say(f"{checkpoint} was removed while it was exported, as checkpoints are when newer ones are whole; going on")
        elif isinstance(error, background.MayPass | OSError):
            self.later.put_off(folder.name, f"{folder} is not made: {reason}")
        else:
            self.records.add("failed", step_of(checkpoint), checkpoint=digest, reason=reason, error=type(error).__name__)
            say(f"{folder} is NOT made, and not tried again without --retry-failed: {reason}")

    # --- pushing -------------------------------------------------------------------------------------------------------------

    def _push_all(self) -> None:
        """Push what is not, until the target does not answer."""
        for folder in sorted(self.hf.glob("step_*"), key=step_of_export) if self.target else []:
            if self._needs_a_push(folder) and not self._push(folder):
                return

    def _needs_a_push(self, folder: Path) -> bool:
        export = self.records.exports.get(step_of_export(folder))
        is_export = folder.name == export_name(step_of_export(folder)) and not (export and export.failed)
        done = folder.name in self.refused or (export and self.target in export.pushed)
        return is_export and not done and self.later.is_due("push")

    def _push(self, folder: Path) -> bool:
        """Whether to go on with the next one."""
        assert self.target
        step = step_of_export(folder)
        export = self.records.exports.get(step)
        revision = export.revision if export else export_name(step).replace("_", "-")
        try:
            pushed = self._in_child(_push, folder, self.target, revision)
        except (Unreachable, background.MayPass) as error:
            self.later.put_off("push", f"{folder} is not pushed: {error}", getattr(error, "wait", 0.0))
            return False
        except UserError as error:
            self.refused[folder.name] = f"{folder} is not pushed: {error}"
            say(self.refused[folder.name])
            return True
        self.later.done("push")
        self.records.add("pushed", step, target=self.target, revision=revision, url=pushed.url, commit=pushed.commit)
        say(f"pushed {folder} to {pushed.url}")
        return True

    # --- both ----------------------------------------------------------------------------------------------------------------

    def _in_child(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return background.call(function, *arguments, threads=self.arguments.threads, stop=self.stop)

    def _tell_what_is_left(self) -> None:
        there = {step_of(checkpoint): checkpoint for checkpoint in whole_checkpoints(self.run)}
        failed = {step: export for step, export in self.records.exports.items() if export.failed and step in there}
        left = [f"{self.hf / export_name(step)} is not made: {export.failed}" for step, export in sorted(failed.items())]
        left += [*self.later.waiting.values(), *self.refused.values()]
        if left:
            kind = ParityError if any(export.error == ParityError.__name__ for export in failed.values()) else ConversionError
            remedy = "; --retry-failed tries it again" if failed else ""
            raise kind(f"{len(left)} not done: {'; '.join(left)}{remedy}")
        say("all checkpoints are exported")


# --- in a child ------------------------------------------------------------------------------------------------------------
# What these import is heavy, and only they need it.


def _check(arguments: argparse.Namespace) -> None:
    from conversion import to_hf
    from conversion.upload.hub import check_repository

    to_hf.check(to_hf.Options.of(arguments))
    if arguments.push and "://" not in arguments.push:
        check_repository(arguments.push)


def _convert(checkpoint: Path, folder: Path, arguments: argparse.Namespace) -> None:
    from conversion import to_hf

    to_hf.run(checkpoint, folder, to_hf.Options.of(arguments))


def _push(folder: Path, target: str, revision: str) -> Any:
    """To a branch of a repository of the Hub; elsewhere to a folder of that name."""
    from conversion import push

    if "://" in target:
        return push.push(folder, f"{target.rstrip('/')}/{revision}", push.Options())
    return push.push(folder, target, push.Options(revision=revision))
