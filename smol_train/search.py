"""Layouts ranked on paper: which tensor, pipeline and context sizes and micro-batches fit a GPU, and which is fastest.

    python -m smol_train.plan --config C.yaml --search --gpus 64 --gpu h100 [--memory 60] [--json]

Every layout of the run's own global batch on `gpus` devices is either refused by the configuration's own checks (it does
not divide), refused by memory.py (it does not fit), or ranked by speed.py. Nothing runs. Tensor parallelism stays inside
a node; sequence parallelism goes with it; contexts are split for micro-batches of one window only, since a smaller
micro-batch does the same without traffic. Activations are recomputed where they do not fit otherwise, and then as little as
does, since it only costs time; pipelines are tried with up to MOST_CHUNKS chunks a stage.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

from smol_config import ConfigError, Section
from smol_train.config import RunConfig
from smol_train.gpus import GPUS_PER_NODE, Gpu
from smol_train.memory import device_memory
from smol_train.sections.layout import Recompute
from smol_train.speed import StepTime, step_time

USABLE_MEMORY = 0.9
"""Share of a GPU that the estimate may fill: the rest is for CUDA, NCCL's buffers and fragmentation, which it leaves out."""
MOST_CHUNKS = 4
"""Of a stage. Smaller pieces idle less and wait more for launches and messages' latency, which speed.py leaves out."""
_SHOWN = 10


class Layout(Section):
    """One way to lay the run out."""

    tensor: int
    pipeline: int
    virtual_pipeline: int = 1
    context: int
    data: int
    """Copies of the model."""
    micro_batch_size: int
    micro_batches: int
    """Of one rank and step."""
    recompute: Recompute = "none"

    def name(self) -> str:
        chunks = f" x {self.virtual_pipeline} chunks" if self.virtual_pipeline > 1 else ""
        recompute = f", recompute {self.recompute}" if self.recompute != "none" else ""
        return (
            f"tensor {self.tensor}, pipeline {self.pipeline}{chunks}, context {self.context}, "
            f"micro-batch {self.micro_batch_size}{recompute}"
        )


class Ranked(Section):
    """A layout that divides and fits."""

    layout: Layout
    memory_bytes: int
    """memory.py's estimate of the fullest device."""
    speed: StepTime


class Refused(Section):
    """A layout that cannot run, and why."""

    layout: Layout
    cause: Literal["does not divide", "does not fit"]
    reason: str
    memory_bytes: int | None = None


class Search(Section):
    """What was found."""

    gpus: int
    gpu: str
    memory_bytes: int
    """That the estimate may fill."""
    ranked: list[Ranked]
    """Fastest first."""
    refused: list[Refused]


def search(
    config: RunConfig, gpus: int, gpu: Gpu, memory_gib: float | None = None, document_tokens: float | None = None
) -> Search:
    """All layouts of `config` on `gpus` devices of `memory_gib` each (None: the GPU's own). Pure; raises ConfigError."""
    memory_gib = gpu.memory_gib if memory_gib is None else memory_gib
    if gpus < 1 or memory_gib <= 0:
        raise ConfigError(f"gpus={gpus} and memory={memory_gib}: give at least one GPU and more than 0 GiB")
    limit = int(memory_gib * USABLE_MEMORY * 2**30)
    ranked, refused = [], []
    for layout in _layouts(config, gpus):
        candidate = apply(config, layout)
        if problems := _problems(candidate, layout):
            refused.append(Refused(layout=layout, cause="does not divide", reason=problems[0]))
            continue
        layout, needed = _least_recomputed(config, layout, limit)
        if needed > limit:
            reason = f"{layout.name()} needs {needed / 2**30:.1f} GiB of {limit / 2**30:.1f}"
            refused.append(Refused(layout=layout, cause="does not fit", reason=reason, memory_bytes=needed))
        else:
            speed = step_time(apply(config, layout), gpus, gpu, document_tokens)
            ranked.append(Ranked(layout=layout, memory_bytes=needed, speed=speed))
    ranked.sort(key=lambda one: -one.speed.tokens_per_second_per_gpu)
    return Search(gpus=gpus, gpu=gpu.name, memory_bytes=limit, ranked=ranked, refused=refused)


def _least_recomputed(config: RunConfig, layout: Layout, limit: int) -> tuple[Layout, int]:
    """`layout` with the least recomputation that fits into `limit` bytes, or with the most, and what it needs."""
    needed = 0
    for recompute in get_args(Recompute):
        layout = layout.model_copy(update={"recompute": recompute})
        needed = device_memory(apply(config, layout), config.train.precision, layout.data).total
        if needed <= limit:
            break
    return layout, needed


def apply(config: RunConfig, layout: Layout) -> RunConfig:
    """`config` laid out as `layout`; unchecked."""
    names = ("tensor", "pipeline", "virtual_pipeline", "context", "recompute")
    parallel: dict[str, Any] = {name: getattr(layout, name) for name in names}
    parallel["sequence"] = layout.tensor > 1
    return config.model_copy(
        update={
            "parallel": config.parallel.model_copy(update=parallel),
            "train": config.train.model_copy(update={"micro_batch_size": layout.micro_batch_size}),
        }
    )


def _layouts(config: RunConfig, gpus: int) -> Iterator[Layout]:
    """Every layout whose ranks make up `gpus`; one with micro-batch 1 where the copies cannot share the global batch."""
    windows = config.train.global_batch_size
    for tensor in (size for size in (1, 2, 4, 8) if size <= GPUS_PER_NODE and gpus % size == 0):
        for pipeline in (size for size in _divisors(gpus // tensor) if size <= config.model.num_layers):
            for context in (size for size in _divisors(gpus // tensor // pipeline) if size & (size - 1) == 0):
                data = gpus // tensor // pipeline // context
                share = windows // data
                micros = _divisors(share) if windows % data == 0 and context == 1 else [1]
                for micro in micros:
                    for chunks in _chunks(config.model.num_layers, pipeline, share // micro):
                        yield Layout(
                            tensor=tensor,
                            pipeline=pipeline,
                            virtual_pipeline=chunks,
                            context=context,
                            data=data,
                            micro_batch_size=micro,
                            micro_batches=share // micro,
                        )


def _chunks(layers: int, pipeline: int, micro_batches: int) -> list[int]:
    """Numbers of chunks that a stage may have; 1 in any case."""
    if pipeline == 1 or micro_batches % pipeline:
        return [1]
    return [chunks for chunks in range(1, MOST_CHUNKS + 1) if chunks == 1 or layers % (pipeline * chunks) == 0]


def _problems(candidate: RunConfig, layout: Layout) -> list[str]:
    """Why `candidate` cannot run, by the configuration's own checks and the division of the batch."""
    found = candidate.problems()
    for _, size in candidate.train.batch_sizes:
        if size % (layout.data * layout.micro_batch_size):
            found.append(f"train.global_batch_size={size} cannot be shared by {layout.data} copies of the model")
        elif size // (layout.data * layout.micro_batch_size) % candidate.parallel.micro_batch_group:
            found.append(f"train.global_batch_size={size} is no whole number of groups of {layout.pipeline} micro-batches")
    return found


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


# --- text ----------------------------------------------------------------------------------------------------------------


def render(result: Search) -> str:
    """The fastest layouts as a table, then why the others fail."""
    room = f"{result.memory_bytes / 2**30:.1f} GiB of memory each ({USABLE_MEMORY:.0%} of what was given)"
    lines = [
        f"{result.gpus} x {result.gpu}, {room}; by the models in smol_train/memory.py and smol_train/speed.py, not measured",
        "",
    ]
    lines += list(_table(result.ranked))
    lines += [""] if result.refused else []
    for cause in ("does not divide", "does not fit"):
        lines += list(_refusals(cause, [one for one in result.refused if one.cause == cause]))
    return "\n".join(lines)


def best_micro_batches(ranked: list[Ranked]) -> list[Ranked]:
    """The fastest of each tensor x pipeline x context, whatever its chunks, micro-batch and recomputation."""
    best: dict[tuple[int, int, int], Ranked] = {}
    for one in ranked:
        best.setdefault((one.layout.tensor, one.layout.pipeline, one.layout.context), one)
    return list(best.values())


def _table(ranked: list[Ranked]) -> Iterator[str]:
    if not ranked:
        yield "no layout divides and fits; give more GPUs or memory, or change train.global_batch_size"
        return
    yield (
        "tensor pipeline chunks context  data  micro-batch  steps of it  recompute      GiB   s a step  tokens/s/GPU    MFU  "
        "waits most on"
    )
    best = best_micro_batches(ranked)
    for one in best[:_SHOWN]:
        layout, speed = one.layout, one.speed
        yield (
            f"{layout.tensor:6} {layout.pipeline:8} {layout.virtual_pipeline:6} {layout.context:7} {layout.data:5} "
            f"{layout.micro_batch_size:12} {layout.micro_batches:12} {layout.recompute:>10} "
            f"{one.memory_bytes / 2**30:8.1f} {speed.total:10.3f} "
            f"{speed.tokens_per_second_per_gpu:13,.0f} {speed.mfu:6.1%}  {_waits(speed)}"
        )
    shown = min(len(best), _SHOWN)
    yield f"the fastest micro-batch of each layout that fits; {len(ranked) - shown} slower ones are left out (--json has all)"


def _waits(speed: StepTime) -> str:
    """What costs most beside kernels."""
    names = ("tensor_parallel", "context_parallel", "pipeline_transfers", "pipeline_bubble", "data_parallel", "optimizer")
    name = max(names, key=lambda part: getattr(speed, part))
    return f"{name.replace('_', ' ')} {getattr(speed, name) / speed.total:.0%}"


def _refusals(cause: str, refused: list[Refused]) -> Iterable[str]:
    if not refused:
        return
    yield f"{len(refused)} {cause.replace('does', 'do')}:"
    if cause == "does not fit":
        nearest = min(refused, key=lambda one: one.memory_bytes or 0)
        yield f"    nearest: {nearest.reason}"
        return
    reasons = [one.reason for one in refused]
    for reason in sorted(set(reasons), key=reasons.count, reverse=True)[:_SHOWN]:
        yield f"    {reasons.count(reason)} x {reason}"
