"""A pool of processes that stay alive for the whole test session and run jobs as ranks of real process groups.

Starting a process and importing torch and Megatron-Core takes longer than most checks, so the processes are kept, and fork
for each job: it joins a fresh gloo world of the size it asks for, in a process that did nothing before. (Worlds in one and
the same process leave gloo threads behind, which wake a hundred times a second.) A world may be larger than the pool: a
process then forks more than once. Jobs are module-level functions.
"""

import multiprocessing
import os
import pickle
import socket
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
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
        """Raises RankError with every failing rank's traceback; the pool can be used again if all ranks ended."""
        port = _free_port()
        shares = {pipe: range(first, world_size, len(self.pipes)) for first, pipe in enumerate(self.pipes[:world_size])}
        for pipe, ranks in shares.items():
            pipe.send((job, ranks, world_size, port, arguments))
        outcomes: dict[int, tuple[bool, Any]] = {}
        for pipe, ranks in shares.items():
            for _ in ranks:
                outcomes = self._receive(pipe, ranks) | outcomes
        failures = [f"rank {rank}: {outcomes[rank][1]}" for rank in range(world_size) if not outcomes[rank][0]]
        if failures:
            raise RankError("\n".join(failures))
        return [outcomes[rank][1] for rank in range(world_size)]

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.close()  # ends the process's loop
            process.join(10)
            process.kill()

    @staticmethod
    def _receive(pipe: Connection, ranks: Sequence[int]) -> dict[int, tuple[bool, Any]]:
        """Outcome of the next of a process's ranks to end; of all of them, where none does."""
        if not pipe.poll(300):
            return dict.fromkeys(ranks, (False, "no answer within 300 seconds"))
        outcome: dict[int, tuple[bool, Any]] = pickle.loads(pipe.recv_bytes())
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
            job, ranks, *world = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        sending = fork.Lock()  # the processes forked here share the pipe
        processes = {rank: fork.Process(target=_run, args=(pipe, sending, job, rank, *world)) for rank in ranks}
        for process in processes.values():  # not daemons: saving a checkpoint starts processes
            process.start()
        for rank, process in processes.items():
            process.join()
            if process.exitcode:
                with sending:
                    pipe.send_bytes(pickle.dumps({rank: (False, f"the process ended with {process.exitcode}")}))


def _run(
    pipe: Connection,
    sending: AbstractContextManager[Any],
    job: Callable[..., Any],
    rank: int,
    world_size: int,
    port: int,
    arguments: dict[str, Any],
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    try:
        outcome = True, job(**arguments)
    except BaseException:  # told to the test, which fails with it
        outcome = False, traceback.format_exc()
    # By value: tensors that go by shared memory, as they would through send(), do not outlive this process.
    with sending:
        pipe.send_bytes(pickle.dumps({rank: outcome}))
