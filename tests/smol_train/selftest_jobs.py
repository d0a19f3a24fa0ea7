"""A crew for the self-test's checks made of the tests' pool of ranks, and the faults that it can put into a rank.

The checks run unchanged; what is killed with kill -9 are processes of their own, as in the command.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from ranks import RankError, Ranks

from smol_train.selftests.base import JobError, Setting
from smol_train.selftests.processes import Processes

MakeSetting = Callable[..., Setting]
"""Of the fixture make_setting."""


class PoolCrew:
    """`fault` is put into every rank of every job, under its name in FAULTS."""

    is_main = True

    def __init__(self, pool: Ranks, size: int, fault: str = "") -> None:
        self.pool, self.size, self.fault = pool, size, fault
        self.jobs: list[str] = []

    def run(self, job: Callable[..., Any], world_size: int, **arguments: Any) -> list[Any]:
        self.jobs.append(job.__name__)
        try:
            return self.pool.run(faulty, world_size, work=job, fault=self.fault, arguments=arguments)
        except RankError as error:
            raise JobError(str(error).splitlines()[-1]) from error

    def run_killed(self, job: Callable[..., Any], world_size: int, **arguments: Any) -> None:
        Processes(world_size, {rank: rank for rank in range(world_size)}).run_killed(job, world_size, **arguments)

    def share(self, value: Any) -> Any:
        return value


def faulty(work: Callable[..., Any], fault: str, arguments: dict[str, Any]) -> Any:
    """A job of the pool: the job `work` with a fault in this process."""
    with FAULTS[fault]() if fault else contextlib.nullcontext():
        return work(**arguments)


@contextlib.contextmanager
def one_seed() -> Iterator[None]:
    """Every tensor-parallel rank draws the same weights."""
    from megatron.core import tensor_parallel

    from smol_train import parallel

    def seed_everything(seed: int) -> None:
        tensor_parallel.model_parallel_cuda_manual_seed(seed, tp_rank=0)

    with mock.patch.object(parallel, "seed_everything", seed_everything):
        yield


@contextlib.contextmanager
def no_document_mask() -> Iterator[None]:
    """Attention takes a row for one document, whatever the batch says."""
    from torch.nn.functional import scaled_dot_product_attention

    from smol_model.attention import PackedAttention

    def forward(self: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        heads = (tensor.float().transpose(0, 1)[None] for tensor in (query, key, value))
        output = scaled_dot_product_attention(*heads, is_causal=True, scale=self.scale, enable_gqa=True)
        return output[0].transpose(0, 1).flatten(1).to(query.dtype)

    with mock.patch.object(PackedAttention, "forward", forward):
        yield


@contextlib.contextmanager
def always_masked() -> Iterator[None]:
    """A check whose control is no control: document borders cannot be switched off."""
    from smol_train.selftests import isolation

    real = isolation.pack

    def pack(windows: Any, document_mask: bool = True, **how: Any) -> Any:
        return real(windows, True, **how)

    with mock.patch.object(isolation, "pack", pack):
        yield


@contextlib.contextmanager
def optimizer_dropped() -> Iterator[None]:
    """A resumed run starts with weights and no optimizer state."""
    from smol_train import checkpoint

    real = checkpoint.load

    def load(folder: Any, config: Any, chunks: Any, optimizer: Any, with_optimizer: bool) -> Any:
        return real(folder, config, chunks, optimizer, with_optimizer=False)

    with mock.patch.object(checkpoint, "load", load):
        yield


@contextlib.contextmanager
def data_off_by_one() -> Iterator[None]:
    """A resumed run's loader gives the last step's batch again; the state's counts are right."""
    from smol_train import batches

    real = batches.TrainLoader

    def loader(*arguments: Any, start_step: int, **how: Any) -> Any:
        return real(*arguments, start_step=start_step - bool(start_step), **how)

    with mock.patch.object(batches, "TrainLoader", loader):
        yield


@contextlib.contextmanager
def norms_not_summed() -> Iterator[None]:
    """Under sequence parallelism each rank keeps the gradient of its part of the row for the norms."""
    from smol_model.spec import RMSNorm

    real = RMSNorm.__init__

    def initialise(self: Any, *arguments: Any, **how: Any) -> None:
        real(self, *arguments, **how)
        self.weight.sequence_parallel = False

    with mock.patch.object(RMSNorm, "__init__", initialise):
        yield


@contextlib.contextmanager
def slow_loader() -> Iterator[None]:
    """Half a second for every batch."""
    from smol_data import loader

    real = loader.TrainLoader.__next__

    def slow(self: Any) -> Any:
        time.sleep(0.5)
        return real(self)

    with mock.patch.object(loader.TrainLoader, "__next__", slow):
        yield


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """A rank with a megabyte of memory."""
    import psutil

    with mock.patch.object(psutil, "virtual_memory", lambda: mock.Mock(available=2**20)):
        yield


FAULTS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    fault.__name__: fault
    for fault in (
        one_seed,
        no_document_mask,
        always_masked,
        optimizer_dropped,
        data_off_by_one,
        norms_not_summed,
        slow_loader,
        no_room,
    )
}


# --- jobs of processes of their own ----------------------------------------------------------------------------------------


def waits_for_the_other() -> int:
    """Rank 1 raises, rank 0 would wait for a minute."""
    import os

    if os.environ["RANK"] == "1":
        raise RuntimeError("out of paper")
    time.sleep(60)
    return 0
