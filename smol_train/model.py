"""RunConfig -> the network wrapped for mixed precision and data parallelism, ready for the optimizer and the schedule."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module

from smol_model.spec import Backend, SmolGPT, build_model, resolve_backend, transformer_config
from smol_train.config import RunConfig
from smol_train.sections.layout import ParallelConfig


def parallel_options(parallel: ParallelConfig) -> dict[str, Any]:
    """The fields of Megatron-Core's configuration that say how ranks share the model."""
    return {
        "tensor_model_parallel_size": parallel.tensor,
        "pipeline_model_parallel_size": parallel.pipeline,
        "context_parallel_size": parallel.context,
        "sequence_parallel": parallel.sequence,
    }


def build_training_model(config: RunConfig) -> DistributedDataParallel:
    """This rank's part of the network, in DistributedDataParallel with fp32 gradient buffers, which are sharded over the
    data-parallel ranks where the optimizer is."""
    backend, sharded = resolve_backend(config.train.backend), config.optim.distributed
    megatron = transformer_config(config.model, backend, config.train.precision, **parallel_options(config.parallel))
    network = _network(config, megatron, backend)
    model = DistributedDataParallel(
        megatron,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=sharded,
            overlap_grad_reduce=config.parallel.overlap,
            overlap_param_gather=sharded and config.parallel.overlap,
        ),
        Float16Module(megatron, network) if megatron.bf16 else network,
    )
    if parallel_state.get_data_parallel_world_size(with_context_parallel=True) == 1:
        _gather_nothing(model)
    megatron.finalize_model_grads_func = finalize_model_grads
    megatron.no_sync_func = model.no_sync if config.parallel.overlap else None
    return model


def _gather_nothing(model: DistributedDataParallel) -> None:
    """Leave out the gather of updated weights where one rank has them all already.

    Over gloo it would copy the buffer onto itself in gloo's own threads. Each of them starts OpenMP workers for that, and
    with more OpenMP threads than cores libgomp lets all of them sleep between two operations: on two cores an elementwise
    operation of this process then takes 100 microseconds instead of 25, for the rest of the run.
    """

    def dispatched(group: Any, force_sync: bool = False) -> None:
        group.param_gather_dispatched = True

    for group in (*model.bucket_groups, *model.expert_parallel_bucket_groups):
        group.start_param_sync = functools.partial(dispatched, group)


def _network(config: RunConfig, megatron: TransformerConfig, backend: Backend) -> SmolGPT:
    return build_model(
        config.model,
        megatron,
        backend,
        sequence_length=config.data.sequence_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )


def unwrap(model: DistributedDataParallel) -> SmolGPT:
    """The network inside the wrappers."""
    inner: Any = model
    while not isinstance(inner, SmolGPT):
        inner = inner.module
    return inner


@contextlib.contextmanager
def gathered_parameters(model: DistributedDataParallel) -> Iterator[None]:
    """Inside, every rank holds the newest weights.

    With overlap, the gather of updated weights is put off until the next forward pass of training; whatever else reads
    them (an evaluation, a checkpoint) has to ask for it.
    """
    if not model.ddp_config.overlap_param_gather:
        yield
        return
    model.disable_forward_pre_hook(param_sync=True)
    try:
        yield
    finally:
        model.enable_forward_pre_hook()
