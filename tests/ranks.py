"""A pool of processes that stay alive for the whole test session and run jobs as ranks of real process groups.

Starting a process and importing torch and Megatron-Core takes longer than most checks, so the processes are kept, and fork
for each job: it joins a fresh gloo world of the size it asks for, in a process that did nothing before. (Worlds in one and
the same process leave gloo threads behind, which wake a hundred times a second.) Jobs are module-level functions.
"""

import multiprocessing
import os
import pickle
import socket
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class Ranks:
    """`run(job, world_size, **arguments)` gives each rank's return value, in rank order."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,))  # not a daemon: saving a checkpoint starts processes
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, job: Callable[..., Any], world_size: int, **arguments: Any) -> list[Any]:
        """Raises RankError with the first failing rank's traceback; the pool can be used again if all ranks ended."""
        port = _free_port()
        for rank, pipe in enumerate(self.pipes[:world_size]):
            pipe.send((job, rank, world_size, port, arguments))
        outcomes = [self._receive(pipe) for pipe in self.pipes[:world_size]]
        failures = [f"rank {rank}: {value}" for rank, (ok, value) in enumerate(outcomes) if not ok]
        if failures:
            raise RankError("\n".join(failures))
        return [value for _, value in outcomes]

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.close()  # ends the process's loop
            process.join(10)
            process.kill()

    @staticmethod
    def _receive(pipe: Connection) -> tuple[bool, Any]:
        if not pipe.poll(300):
            return False, "no answer within 300 seconds"
        outcome: tuple[bool, Any] = pickle.loads(pipe.recv_bytes())
        return outcome


class RankError(AssertionError):
    """A job failed on some rank."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(pipe: Connection) -> None:
    import torch

    warnings.simplefilter("ignore")  # megatron-core and torch name their deprecations at every import
    import smol_train.trainer  # noqa: F401  # what most jobs need, once

    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    while True:
        try:
            request = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        process = fork.Process(target=_run, args=(pipe, *request))  # not a daemon: saving a checkpoint starts processes
        process.start()
        process.join()
        if process.exitcode:
            pipe.send_bytes(pickle.dumps((False, f"the process ended with {process.exitcode}")))


def _run(pipe: Connection, job: Callable[..., Any], rank: int, world_size: int, port: int, arguments: dict[str, Any]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    try:
        outcome = True, job(**arguments)
    except BaseException:  # told to the test, which fails with it
        outcome = False, traceback.format_exc()
    # By value: tensors that go by shared memory, as they would through send(), do not outlive this process.
    pipe.send_bytes(pickle.dumps(outcome))
