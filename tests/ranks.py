"""A process that stays alive for the whole test session and runs jobs as ranks of real process groups.

Starting a process and importing torch and Megatron-Core takes longer than most checks, so one process does that once, and forks
the ranks of each job: they join a fresh gloo world, in processes that did nothing before. (Worlds in one and the same process
leave gloo threads behind, which wake a hundred times a second.) Jobs are module-level functions.
"""

import gc
import importlib
import multiprocessing
import os
import pickle
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any

from ports import free_ports

IMPORTED_ONCE = [
    "smol_train.trainer",
    "smol_train.callbacks.checkpointing",
    "smol_train.callbacks.metrics",
    "smol_train.callbacks.profiling",
    "torch._dynamo",  # any optimizer of torch's needs it
]


class Ranks:
    """`run(job, world_size, **arguments)` gives each rank's return value, in rank order."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,))  # not a daemon: it starts processes
        self.process.start()
        theirs.close()

    def run(self, job: Callable[..., Any], world_size: int, **arguments: Any) -> list[Any]:
        """Raises RankError with every failing rank's traceback; the pool can be used again if all ranks ended."""
        self.pipe.send((job, world_size, free_ports(), arguments))
        outcomes: dict[int, tuple[bool, Any]] = {}
        while len(outcomes) < world_size and self.pipe.poll(300):
            outcomes = pickle.loads(self.pipe.recv_bytes()) | outcomes
        silent = False, "no answer within 300 seconds"
        ended = [outcomes.get(rank, silent) for rank in range(world_size)]
        failures = [f"rank {rank}: {outcome}" for rank, (succeeded, outcome) in enumerate(ended) if not succeeded]
        if failures:
            raise RankError("\n".join(failures))
        return [outcome for _, outcome in ended]

    def close(self) -> None:
        self.pipe.close()  # ends the process's loop
        self.process.join(10)
        self.process.kill()


class RankError(AssertionError):
    """A job failed on some rank."""


def _serve(pipe: Connection) -> None:
    warnings.simplefilter("ignore")  # megatron-core and torch name their deprecations at every import
    for module in IMPORTED_ONCE:
        importlib.import_module(module)

    import torch

    torch.set_num_threads(1)
    gc.freeze()  # a rank's collections then pass over all that was imported, and copy none of its pages
    fork = multiprocessing.get_context("fork")
    while True:
        try:
            job, world_size, *world = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        sending = fork.Lock()  # the ranks share the pipe
        ranks = {
            fork.Process(target=_run, args=(pipe, sending, job, rank, world_size, *world)): rank for rank in range(world_size)
        }
        for process in ranks:  # not daemons: saving a checkpoint starts processes
            process.start()
        while ranks:
            time.sleep(0.01)  # no waiting on sentinels: a rank's own children hold its open
            for process in [process for process in ranks if process.exitcode is not None]:
                rank = ranks.pop(process)
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
