"""Runs that are left alone, for their tests: one with a fault put in, as a command; jobs for the pool of ranks below.

    python watch_jobs.py FAULT RANK STEP --config ... [settings]         pretrain_smol.py, and after STEP steps rank RANK

    sleeps       stops in the middle of a step, and the others wait for it in a collective
    saves        sleeps while it saves a checkpoint, between two steps
    killed       gets SIGKILL
    frozen       gets SIGSTOP: to the others a node that does not answer, its own watchdog included

in processes of its own, since what is tested ends or freezes processes.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))  # as pytest has it

from ports import free_ports  # noqa: E402
from tiny_runs import QUICKSTART  # noqa: E402

from smol_config import load  # noqa: E402
from smol_train.callbacks.base import Callback, Metrics  # noqa: E402
from smol_train.config import RunConfig  # noqa: E402


def sleep_for_ever() -> None:
    time.sleep(100_000)


def main(fault: str, rank: str, step: str, *arguments: str) -> int:
    import pretrain_smol
    from smol_train.callbacks.checkpointing import Checkpointing
    from smol_train.trainer import Trainer

    faults = {
        "sleeps": sleep_for_ever,
        "saves": sleep_for_ever,
        "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "frozen": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    }
    owner, name = (Checkpointing, "_save") if fault == "saves" else (Trainer, "_train_step")
    inner = getattr(owner, name)

    def faulty(self, *passed, **named):
        trainer = passed[0] if fault == "saves" else self
        if trainer.state.step == int(step) and os.environ["RANK"] == rank:
            faults[fault]()
        return inner(self, *passed, **named)

    setattr(owner, name, faulty)
    return pretrain_smol.main(arguments)


@contextlib.contextmanager
def world(size: int, command: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """`command` as `size` ranks, started as srun does it: nobody ends the others when one ends. All are gone at the end."""
    port = free_ports()
    processes = []
    try:
        for rank in range(size):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    cwd=REPOSITORY,
                    env={**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in place.items()}},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


# --- jobs of the pool ------------------------------------------------------------------------------------------------------


def lock_refusal(run: Path) -> str | None:
    """Asks for the lock of `run` without much patience; what this rank was told, None when it got it."""
    from smol_train.parallel import process_groups
    from smol_train.run_lock import RunLockError, run_lock
    from smol_train.sections.layout import ParallelConfig

    with process_groups(ParallelConfig(), seed=0) as ranks:
        try:
            with run_lock(run, ranks, patience_seconds=0.0):
                return None
        except RunLockError as refusal:
            return str(refusal)


def lock_and_fork(run: Path) -> tuple[int, int]:
    """(this process, a child forked while the lock was held): this one lets go, as one that is killed does."""
    from smol_train.parallel import process_groups
    from smol_train.run_lock import run_lock
    from smol_train.sections.layout import ParallelConfig

    with process_groups(ParallelConfig(), seed=0) as ranks, run_lock(run, ranks):
        (run / "iter_0000001").mkdir()
        child = os.fork()
        if child == 0:
            sleep_for_ever()
    return os.getpid(), child


def lock_without_support(run: Path) -> str:
    """What is said where flock(2) is not supported, as on Lustre without its mount option."""
    import errno
    import logging

    import smol_lock
    from smol_train.parallel import process_groups
    from smol_train.run_lock import run_lock
    from smol_train.sections.layout import ParallelConfig

    class NoLocks:
        LOCK_EX, LOCK_NB = 2, 4

        def flock(self, *_: object) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    smol_lock.logger.addHandler(handler)
    real, smol_lock.fcntl = smol_lock.fcntl, NoLocks()
    try:
        with process_groups(ParallelConfig(), seed=0) as ranks, run_lock(run, ranks):
            return "\n".join(said)
    finally:
        smol_lock.fcntl = real
        smol_lock.logger.removeHandler(handler)


def train_with_triggers(overrides: Sequence[str], touched: dict[str, int], signal_at: int | None = None) -> dict[str, Any]:
    """A run as pretrain_smol.py makes it. The first rank touches RUN/NAME after `touched[NAME]` steps, and gets a SIGTERM in
    the middle of the step after `signal_at`."""
    from smol_train.callbacks.checkpointing import Checkpointing
    from smol_train.callbacks.profiling import Profiling
    from smol_train.callbacks.signals import StopOnSignal, TriggerFiles
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    class Touch(Callback):
        def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
            for name, step in touched.items():
                if trainer.ranks.is_main and trainer.state.step == step:
                    trainer.output_dir.mkdir(exist_ok=True)
                    (trainer.output_dir / name).touch()
            if trainer.ranks.is_main and trainer.state.step == signal_at:
                os.kill(os.getpid(), signal.SIGTERM)

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed) as ranks:
        callbacks = [StopOnSignal(), TriggerFiles(), Touch(), Checkpointing(), Profiling(config.profiling, ranks)]
        trainer = Trainer(config, ranks, callbacks)
        return {"code": trainer.fit(), "step": trainer.state.step}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
