"""RunConfig -> the network wrapped for mixed precision and data parallelism, ready for the optimizer and the schedule.

A rank has its part of the network as a list of model chunks: one, or parallel.virtual_pipeline of them when the pipeline is
interleaved. Chunk c of stage s then holds the (c x stages + s)-th piece of the layers.
"""

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
from smol_train.sections.layout import ParallelConfig, Recompute


def parallel_options(parallel: ParallelConfig) -> dict[str, Any]:
    """The fields of Megatron-Core's configuration that say how ranks share the model, and what they compute twice."""
    options = {
        "tensor_model_parallel_size": parallel.tensor,
        "pipeline_model_parallel_size": parallel.pipeline,
        "context_parallel_size": parallel.context,
        "sequence_parallel": parallel.sequence,
        **_RECOMPUTE[parallel.recompute],
    }
    if parallel.virtual_pipeline > 1:
        options["virtual_pipeline_model_parallel_size"] = parallel.virtual_pipeline
        # Batched messages do not say which is which: of two stages each is before and after the other, and activations and
        # gradients would change places, silently.
        options["batch_p2p_comm"] = False
        options["overlap_p2p_comm"] = parallel.overlap
    return options


# Not the attention's core, Megatron-Core's default: without score matrices it keeps no more than its inputs and output. The
# MLP keeps the widest tensors. (Its "layernorm" needs Transformer Engine, whose norms are inside the linears anyway.)
_RECOMPUTE: dict[Recompute, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def build_chunks(config: RunConfig) -> list[DistributedDataParallel]:
    """This rank's model chunks in DistributedDataParallel with fp32 gradient buffers, which are sharded over the
    data-parallel ranks where the optimizer is."""
    backend, parallel = resolve_backend(config.train.backend), config.parallel
    options = parallel_options(parallel)
    megatron = transformer_config(config.model, backend, config.train.precision, config.train.deterministic, **options)
    numbers = range(parallel.virtual_pipeline) if parallel.virtual_pipeline > 1 else [None]
    chunks = [_wrapped(config, megatron, _network(config, megatron, backend, number)) for number in numbers]
    megatron.finalize_model_grads_func = finalize_model_grads
    megatron.no_sync_func = functools.partial(_no_sync, chunks) if parallel.overlap else None
    return chunks


def _wrapped(config: RunConfig, megatron: TransformerConfig, network: SmolGPT) -> DistributedDataParallel:
    sharded, overlap = config.optim.distributed, config.parallel.overlap
    chunk = DistributedDataParallel(
        megatron,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=sharded,
            overlap_grad_reduce=overlap,
            overlap_param_gather=sharded and overlap,
        ),
        Float16Module(megatron, network) if megatron.bf16 else network,
        disable_bucketing=bool(network.vp_stage),  # the later chunks' traffic has the earlier ones' compute to hide behind
    )
    if parallel_state.get_data_parallel_world_size(with_context_parallel=True) == 1:
        _exchange_nothing(chunk)
    return chunk


@contextlib.contextmanager
def _no_sync(chunks: list[DistributedDataParallel]) -> Iterator[None]:
    """Inside, gradients are added up and not yet reduced: all micro-batches but a step's last."""
    with contextlib.ExitStack() as stack:
        for chunk in chunks:
            stack.enter_context(chunk.no_sync())
        yield


class _Done:
    """A collective that was not needed."""

    def wait(self) -> None:
        """Nothing to wait for."""


def _exchange_nothing(chunk: DistributedDataParallel) -> None:
    """Leave out the reduction of gradients and the gather of updated weights where one rank has them all already.

    Over gloo each would copy its buffer onto itself in gloo's own threads. Each of them starts OpenMP workers for that, and
    with more OpenMP threads than cores libgomp lets all of them sleep between two operations: on two cores an elementwise
    operation of this process then takes 100 microseconds instead of 25, for the rest of the run.
    """

    def dispatched(group: Any, force_sync: bool = False) -> None:
        group.param_gather_dispatched = True

    def reduced(group: Any, force_all_reduce: bool = False) -> None:
        group.grad_reduce_handle = _Done() if chunk.ddp_config.overlap_grad_reduce else None

    for group in (*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups):
        group.start_param_sync = functools.partial(dispatched, group)
        group.start_grad_sync = functools.partial(reduced, group)


def _network(config: RunConfig, megatron: TransformerConfig, backend: Backend, number: int | None) -> SmolGPT:
    return build_model(
        config.model,
        megatron,
        backend,
        sequence_length=config.data.sequence_length,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=number),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=number),
        vp_stage=number,
    )


def unwrap(chunk: DistributedDataParallel) -> SmolGPT:
    """The network inside the wrappers."""
    inner: Any = chunk
    while not isinstance(inner, SmolGPT):
        inner = inner.module
    return inner


@contextlib.contextmanager
def gathered_parameters(chunks: list[DistributedDataParallel]) -> Iterator[None]:
    """Inside, every rank holds the newest weights.

    With overlap, the gather of updated weights is put off until the next forward pass of training; whatever else reads
    them (an evaluation, a checkpoint) has to ask for it.
    """
    waiting = [chunk for chunk in chunks if chunk.ddp_config.overlap_param_gather]
    for chunk in waiting:
        chunk.disable_forward_pre_hook(param_sync=True)
    try:
        yield
    finally:
        for chunk in waiting:
            chunk.enable_forward_pre_hook()
