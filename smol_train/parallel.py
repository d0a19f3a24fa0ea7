"""Process groups, ranks, seeds, clean shutdown. The only file that starts and ends torch.distributed.

The same code runs alone, under torchrun and under srun: ranks come from the environment that either sets, and a lone
process makes a world of one. NCCL carries the traffic where CUDA is there, gloo where it is not.
"""

import contextlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from megatron.core import parallel_state, tensor_parallel

from smol_config import ConfigError
from smol_data.batch import ContextRank
from smol_train.launch import launched_as
from smol_train.sections.layout import ParallelConfig

TIMEOUT = timedelta(minutes=30)
"""Of collectives, where no watchdog ends a hung run: longer than any checkpoint load or first-step compilation."""


@dataclass(frozen=True)
class Ranks:
    """This process's place."""

    world_size: int
    rank: int
    data_parallel_size: int
    data_parallel_rank: int
    context: ContextRank
    device: torch.device

    @property
    def is_main(self) -> bool:
        """One process of the run: writes files that are written once."""
        return self.rank == 0


@contextlib.contextmanager
def process_groups(parallel: ParallelConfig, seed: int, timeout: timedelta = TIMEOUT) -> Iterator[Ranks]:
    """Start torch.distributed and Megatron-Core's groups, seed all generators; take everything down at the end.

    Raises ConfigError when the world does not fit `parallel`. A group that torchrun's parent already started is used.
    `timeout` is that of collectives: with a watchdog more than it allows, so that the watchdog is the one to judge.
    """
    device = _join_world(timeout)
    try:
        _check_world(parallel)
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
            context_parallel_size=parallel.context,
            distributed_timeout_minutes=-(-int(timeout.total_seconds()) // 60),
        )
        seed_everything(seed)
        yield Ranks(
            world_size=torch.distributed.get_world_size(),
            rank=torch.distributed.get_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            context=ContextRank(parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()),
            device=device,
        )
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def _join_world(timeout: timedelta) -> torch.device:
    """Start the default process group; returns this rank's device."""
    # One hardware queue: a collective started before a GEMM also runs before it, which the overlap of tensor-parallel
    # communication relies on. Read when CUDA starts, so it is set first; SmolLM3's launch script set it too.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    rank, world, local = launched_as()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    store = None
    if world == 1 and "MASTER_ADDR" not in os.environ:
        rank, store = 0, torch.distributed.HashStore()  # alone: no port to collide on
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        rank=rank,
        world_size=world,
        store=store,
        timeout=timeout,
        device_id=device if cuda else None,
    )
    return device


def _check_world(parallel: ParallelConfig) -> None:
    world = torch.distributed.get_world_size()
    if world % parallel.model_ranks:
        raise ConfigError(
            f"{world} processes do not divide into copies of parallel.tensor={parallel.tensor} x "
            f"parallel.pipeline={parallel.pipeline} x parallel.context={parallel.context} = {parallel.model_ranks} ranks; "
            f"start a multiple of {parallel.model_ranks} or change the layout"
        )


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy, torch and Megatron-Core's RNG tracker.

    Weights that are split over tensor-parallel ranks are drawn from the tracker's stream, which differs on each of them,
    and the pipeline stage is part of the seed: initial weights differ on every TP rank and PP stage and agree across
    data-parallel ranks. (One seed on all TP ranks cost SmolLM3 a restart after a trillion tokens.)
    """
    staged = seed + 100 * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(staged)
    np.random.seed(staged)
    torch.manual_seed(staged)
    tensor_parallel.model_parallel_cuda_manual_seed(staged, force_reset_rng=True)
