"""Saves that go wrong, for their tests: jobs for the pool of ranks, and below them a command.

python save_jobs.py --config ... [settings]     pretrain_smol.py whose saves take a second at each moment, to be killed in
"""

import contextlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))  # as pytest has it

from tiny_runs import QUICKSTART  # noqa: E402

from smol_config import load  # noqa: E402
from smol_train.callbacks.base import Callback, Metrics  # noqa: E402
from smol_train.config import RunConfig  # noqa: E402

# --- a disk that is small, full, read-only -----------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of so many MiB at `folder`. Raises PermissionError where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise PermissionError("this container may not mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leaving: int) -> None:
    """Take up all but `leaving` bytes of the file system."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with (folder / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leaving)


def make_read_only(folder: Path) -> None:
    """For everyone but files that are open already."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


def make_writable_again(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=True)


class Faults(Callback):
    """At each step's end, before Checkpointing has its turn: what `plan` says for the step, on the main rank."""

    def __init__(self, plan: dict[int, Callable[[Any], None]], checkpointing: Any) -> None:
        self.plan, self.checkpointing = plan, checkpointing

    def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
        import torch

        if action := self.plan.get(trainer.state.step):
            self.checkpointing._finish(trainer)  # of an earlier step, in the background: not what the fault is meant for
            if trainer.ranks.is_main:
                action(trainer)
            torch.distributed.barrier()


def train_on_a_bad_disk(overrides: Sequence[str], disk: Path, record: Path) -> dict[str, Any]:
    """A run with a save after each of its 10 steps, whose disk is full before and while saving, read-only, and full at the
    end; returns its exit code, the checkpoints that it leaves, its metrics and the alerts."""
    from smol_train.callbacks.alerts import Alerts
    from smol_train.callbacks.checkpointing import Checkpointing, SaveCosts
    from smol_train.callbacks.metrics import MetricsWriter
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    config = load(RunConfig, QUICKSTART, overrides)
    logging.getLogger("smol_train").setLevel(logging.CRITICAL)
    with process_groups(config.parallel, config.train.seed) as ranks:
        alerts = Alerts(config.alerts, record, ranks.is_main)
        checkpointing = Checkpointing(alerts)

        def unseen(trainer: Any) -> None:
            """As a quota, which a look at the free space does not show."""
            checkpointing.bytes = 0

        plan = {
            2: lambda trainer: fill(disk, leaving=100_000),
            3: unseen,
            4: lambda trainer: (disk / "filler").unlink(),
            5: lambda trainer: make_read_only(trainer.output_dir),
            6: lambda trainer: make_writable_again(trainer.output_dir),
            10: lambda trainer: (fill(disk, leaving=100_000), unseen(trainer)),
        }
        callbacks = [Faults(plan, checkpointing), SaveCosts(checkpointing), MetricsWriter(), checkpointing, alerts]
        trainer = Trainer(config, ranks, callbacks)
        code = trainer.fit()
        return {
            "code": code,
            "step": trainer.state.step,
            "saved_step": trainer.saved_step,
            "left": sorted(path.name for path in trainer.output_dir.glob("iter_*")),
            "lines": [json.loads(line) for line in (trainer.output_dir / "metrics.jsonl").read_text().splitlines()],
            "alerts": told_alerts(record) if ranks.is_main else [],
        }


# --- uploads that lag --------------------------------------------------------------------------------------------------------


def note_upload(checkpoint: Path) -> None:
    """What an uploader leaves when a checkpoint has arrived."""
    from smol_train.checkpoint_folder import UploadNote, identity_of, note_path, step_of

    identity = identity_of(checkpoint)
    assert identity
    path = note_path(checkpoint.parent, step_of(checkpoint))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(UploadNote(*identity, f"s3://bucket/run/{checkpoint.name}", 1, 1.0, ""))))


def train_while_uploads_lag(overrides: Sequence[str], uploads: dict[int, list[int]], fits: int) -> dict[str, Any]:
    """A run of one rank that saves after each step, on a disk with room for `fits` checkpoints; `uploads` says which steps'
    checkpoints have arrived by the end of a step. Returns the checkpoints after each step, and what was told."""
    from smol_train.callbacks import checkpointing
    from smol_train.checkpoint_folder import folder_name, step_of, whole_checkpoints
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    told: list[str] = []
    kept: dict[int, list[int]] = {}

    class Listener:
        def alert(self, event: str, text: str) -> None:
            told.append(f"{event}: {text}")

    class Arrivals(Callback):
        def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
            for step in uploads.get(trainer.state.step, []):
                note_upload(trainer.output_dir / folder_name(step))

    class Look(Callback):
        def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
            kept[trainer.state.step] = [step_of(path) for path in whole_checkpoints(trainer.output_dir)]

    config = load(RunConfig, QUICKSTART, overrides)
    logging.getLogger("smol_train").setLevel(logging.CRITICAL)
    free_bytes = checkpointing.free_bytes
    checkpointing.free_bytes = lambda run: 0 if len(whole_checkpoints(run)) >= fits else 10**12
    try:
        with process_groups(config.parallel, config.train.seed) as ranks:
            Trainer(config, ranks, [Arrivals(), checkpointing.Checkpointing(Listener()), Look()]).fit()
    finally:
        checkpointing.free_bytes = free_bytes
    return {"kept": kept, "told": told}


# --- writers in the background ------------------------------------------------------------------------------------------------


def train_with_held_up_writers(overrides: Sequence[str], held: int, until: int) -> list[int]:
    """A run in whose background the writers of step `held` begin to write when step `until` is done; returns the steps at
    whose end they had not written yet, on this rank."""
    from smol_train import checkpoint_writer
    from smol_train.callbacks.checkpointing import Checkpointing
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    config = load(RunConfig, QUICKSTART, overrides)
    released = Path(config.train.output_dir) / f"released_{os.environ['RANK']}"
    write = checkpoint_writer._write
    waiting: list[int] = []

    def held_up(sender: Any, transforms: Any, bucket: Any, parent: int) -> None:
        if f"iter_{held:07d}" in bucket[0]:
            while not released.exists():
                time.sleep(0.01)
        write(sender, transforms, bucket, parent)

    class Release(Callback):
        def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
            if list(trainer.output_dir.glob(f"iter_{held:07d}.partial")):
                waiting.append(trainer.state.step)
            if trainer.state.step == until:
                released.touch()

    checkpoint_writer._write = held_up
    try:
        with process_groups(config.parallel, config.train.seed) as ranks:
            Trainer(config, ranks, [Release(), Checkpointing()]).fit()
    finally:
        checkpoint_writer._write = write
    return waiting


def train_with_a_killed_writer(overrides: Sequence[str], killed_after: int) -> dict[str, Any]:
    """A run in the background of which, on the last rank, the writers of one step get SIGKILL, as from a host that is out of
    memory."""
    from smol_train import checkpoint_writer
    from smol_train.callbacks.checkpointing import Checkpointing
    from smol_train.checkpoint_folder import step_of, whole_checkpoints
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    told: list[str] = []

    class Listener:
        def alert(self, event: str, text: str) -> None:
            told.append(f"{event}: {text}")

    class Kill(Callback):
        def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
            if trainer.state.step == killed_after and trainer.ranks.rank == trainer.ranks.world_size - 1:
                for child in multiprocessing.active_children():
                    child.kill()

    config = load(RunConfig, QUICKSTART, overrides)
    logging.getLogger("smol_train").setLevel(logging.CRITICAL)
    write = checkpoint_writer._write

    def slow(sender: Any, transforms: Any, bucket: Any, parent: int) -> None:
        if f"iter_{killed_after:07d}" in bucket[0]:
            time.sleep(1)
        write(sender, transforms, bucket, parent)

    checkpoint_writer._write = slow
    try:
        with process_groups(config.parallel, config.train.seed) as ranks:
            trainer = Trainer(config, ranks, [Checkpointing(Listener()), Kill()])
            code = trainer.fit()
            return {"code": code, "told": told, "whole": [step_of(path) for path in whole_checkpoints(trainer.output_dir)]}
    finally:
        checkpoint_writer._write = write


def train_while_the_clock_goes_back(overrides: Sequence[str]) -> list[str]:
    """A run of one rank whose wall clock loses a day with every step; returns the checkpoints that were saved."""
    from smol_train.callbacks.checkpointing import Checkpointing
    from smol_train.callbacks.metrics import MetricsWriter
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    class Set(Callback):
        def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
            now = time.time() - 86_400
            time.time = lambda: now

    config = load(RunConfig, QUICKSTART, overrides)
    real = time.time
    try:
        with process_groups(config.parallel, config.train.seed) as ranks:
            Trainer(config, ranks, [Set(), MetricsWriter(), Checkpointing()]).fit()
    finally:
        time.time = real
    return sorted(path.name for path in Path(config.train.output_dir).glob("iter_*"))


def newest_good_of(run: Path) -> tuple[str | None, list[str]]:
    """What newest_good answers on this rank, and which it passed over."""
    from smol_train.checkpoint_integrity import newest_good
    from smol_train.parallel import process_groups
    from smol_train.sections.layout import ParallelConfig

    told: list[str] = []
    with process_groups(ParallelConfig(), seed=0):
        good = newest_good(run, damaged=lambda folder, fault: told.append(f"{folder.name}: {fault}"))
    return good.name if good else None, told


def train_and_tell(overrides: Sequence[str], record: Path) -> dict[str, Any]:
    """As jobs.train, with saves and alerts; returns what was told on this rank too."""
    from jobs import Recorder

    from smol_train.callbacks.alerts import Alerts
    from smol_train.callbacks.checkpointing import Checkpointing
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed) as ranks:
        alerts, recorder = Alerts(config.alerts, record, ranks.is_main), Recorder()
        trainer = Trainer(config, ranks, [recorder, Checkpointing(alerts), alerts])
        start = trainer.state.step
        trainer.fit()
        losses = [step["train/loss"] for step in recorder.steps]
        return {"start": start, "loss": losses, "told": told_alerts(record) if ranks.is_main else []}


def told_alerts(record: Path) -> list[tuple[str, str]]:
    lines = (record / "alerts.jsonl").read_text().splitlines()
    return [(line["event"], line["text"]) for line in map(json.loads, lines)]


# --- the command -------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """pretrain_smol.py with a second of rest after each file of a save appeared."""
    import pretrain_smol
    from smol_train import checkpoint_writer

    def rests(inner: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
        def outer(*passed: Any) -> Any:
            result = inner(*passed)
            if when(*passed):
                time.sleep(1)
            return result

        return outer

    checkpoint_writer._make_empty = rests(checkpoint_writer._make_empty, lambda folder: True)
    checkpoint_writer.describe = rests(checkpoint_writer.describe, lambda path: path.suffix == ".distcp")
    checkpoint_writer.save_config = rests(checkpoint_writer.save_config, lambda *_: True)
    checkpoint_writer._to_disk = rests(checkpoint_writer._to_disk, lambda path: path.name == checkpoint_writer.MARKER)
    return pretrain_smol.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
