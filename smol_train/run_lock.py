"""The lock of smol_lock.py, asked for by the main rank and told to all: a second run pointed at the same `train.output_dir`
meets it before it touches anything.

Held from before the newest checkpoint is looked for until the process groups come down.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

import smol_lock
from smol_config import UserError
from smol_train.parallel import Ranks


class RunLockError(UserError):
    """Another run works in this folder."""


@contextlib.contextmanager
def run_lock(run: Path, ranks: Ranks, patience_seconds: float = 10.0) -> Iterator[None]:
    """Hold RUN/lock, with this host and process inside; called on all ranks, raises RunLockError on all of them."""
    file, refusal = smol_lock.take(run, patience_seconds) if ranks.is_main else (None, None)
    try:
        told = [refusal]
        if ranks.world_size > 1:
            torch.distributed.broadcast_object_list(told, src=0, device=ranks.device)
        if told[0]:
            raise RunLockError(told[0])
        yield
    finally:
        if file:
            smol_lock.give_back(run, file)
