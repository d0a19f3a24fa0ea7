"""The ranks of the self-test: each job runs in fresh processes, as a run that is started again does.

    alone            one process starts all ranks of a job itself (--ranks N)
    torchrun, srun   every launched process starts its own rank of each job, and tells the others what came of it

So a job has a world of its own size, a rank can be killed with kill -9, and no GPU memory is left behind by the job before.
A process that was launched holds no GPU; it only waits, in a gloo group of its own.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from smol_config import ConfigError
from smol_process import when_parent_ends
from smol_train.launch import launched_as
from smol_train.selftests.base import JobError

GRACE_SECONDS = 30.0
"""For the other ranks of a job, after one failed: they may wait for it in a collective."""
WAITED = "it waited for a rank that had failed"
LONGEST_JOB = timedelta(hours=12)

Outcome = tuple[bool, Any]
"""Whether the job returned, and its result or what went wrong."""


class Processes:
    """A crew (smol_train.selftests.base): `mine` are the ranks that this process starts, with their numbers on this host."""

    def __init__(self, size: int, mine: Mapping[int, int]) -> None:
        self.size, self.mine = size, mine

    @property
    def is_main(self) -> bool:
        return 0 in self.mine

    def share(self, value: Any) -> Any:
        """The main process's value, in all that were launched."""
        held = [value]
        if len(self.mine) < self.size:
            torch.distributed.broadcast_object_list(held, src=0)
        return held[0]

    def run(self, job: Callable[..., Any], world_size: int, **arguments: Any) -> list[Any]:
        outcomes = self._everywhere(job, world_size, arguments)
        failures = {rank: value for rank, (ok, value) in sorted(outcomes.items()) if not ok}
        if failures:
            raise JobError("rank {}: {}".format(*min(failures.items(), key=lambda failure: _follows(failure[1]))))
        return [value for _, (_, value) in sorted(outcomes.items())]

    def run_killed(self, job: Callable[..., Any], world_size: int, **arguments: Any) -> None:
        outcomes = self._everywhere(job, world_size, arguments)
        killed = _died(-signal.SIGKILL)
        if others := [f"rank {rank}: {value}" for rank, (ok, value) in sorted(outcomes.items()) if ok or value != killed]:
            raise JobError(f"it was to be killed, but {others[0]}")

    def _everywhere(self, job: Callable[..., Any], world_size: int, arguments: dict[str, Any]) -> dict[int, Outcome]:
        """The outcomes of all ranks, in all processes that were launched."""
        port = self.share(_free_port())
        children = {
            rank: _Child(job, arguments, _environment(rank, world_size, local, port))
            for rank, local in self.mine.items()
            if rank < world_size
        }
        try:
            mine = _collect(children)
        finally:
            for child in children.values():
                child.end()
        if len(self.mine) == self.size:
            return mine
        every: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(every, mine)
        return {rank: outcome for one in every for rank, outcome in one.items()}


@contextlib.contextmanager
def processes(ranks: int | None) -> Iterator[Processes]:
    """The crew of this call: `ranks` of its own, or those that were launched. Raises ConfigError when both are given."""
    rank, size, local = launched_as()
    if size == 1:
        yield Processes(ranks or 1, {each: each for each in range(ranks or 1)})
        return
    if ranks:
        raise ConfigError(f"--ranks {ranks} was given to one of {size} launched processes; leave it out under torchrun or srun")
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size, timeout=LONGEST_JOB)
    try:
        yield Processes(size, {rank: local})
    finally:
        torch.distributed.destroy_process_group()


class _Child:
    """One rank of one job."""

    def __init__(self, job: Callable[..., Any], arguments: dict[str, Any], environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe(duplex=False)
        # Not a daemon: saving a checkpoint starts processes.
        work = pickle.dumps((job, arguments))
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, work, environment))
        self.process.start()
        theirs.close()

    def outcome(self) -> Outcome:
        try:
            outcome: Outcome = self.pipe.recv()
        except EOFError:
            self.process.join()
            return False, _died(self.process.exitcode)
        return outcome

    def end(self) -> None:
        """Nothing of it is left running, a writer of a checkpoint included."""
        self.process.join(0 if self.pipe.closed else GRACE_SECONDS)
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _follows(failure: str) -> bool:
    """Whether it says that another rank failed before."""
    return failure == WAITED or "onnection" in failure


def _died(code: int | None) -> str:
    return f"its process ended with code {code}"


def _collect(children: dict[int, _Child]) -> dict[int, Outcome]:
    """Every child's outcome; once one has failed, the others have GRACE_SECONDS."""
    outcomes: dict[int, Outcome] = {}
    deadline: float | None = None
    while waiting := {child.pipe: rank for rank, child in children.items() if rank not in outcomes}:
        ready = wait(list(waiting), None if deadline is None else max(0.0, deadline - time.monotonic()))
        if not ready:
            for rank in waiting.values():
                outcomes[rank] = False, WAITED
                children[rank].process.kill()
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting[pipe]
            outcomes[rank] = children[rank].outcome()
            if not outcomes[rank][0] and deadline is None:
                deadline = time.monotonic() + GRACE_SECONDS
    return outcomes


def _environment(rank: int, world_size: int, local: int, port: int) -> dict[str, str]:
    """As torchrun sets it for a job's ranks. The main process's host is the launched ranks' MASTER_ADDR too."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _serve(pipe: Connection, work: bytes, environment: dict[str, str]) -> None:
    """The child's main function. `work` is pickled, so that the job's imports find the child set up."""
    os.setpgrp()  # a group of its own: one signal reaches it and the processes that it starts
    when_parent_ends(lambda: os.killpg(0, signal.SIGKILL))
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC_")]:
        del os.environ[name]  # else ranks would look for torchrun's store, not for their own
    os.environ.update(environment)
    warnings.simplefilter("ignore")  # megatron-core and torch name their deprecations at every import
    try:
        job, arguments = pickle.loads(work)
        outcome: Outcome = True, job(**arguments)
    except BaseException as error:  # told to the parent, which knows what it means for the check
        traceback.print_exc()
        outcome = False, f"{type(error).__name__}: {error}"
    pipe.send(outcome)
    pipe.close()
