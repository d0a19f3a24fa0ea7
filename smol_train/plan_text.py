"""A plan as text for people: plan.py computes, this file only words and aligns."""

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smol_train.plan import Plan

_LABEL = 26
_SPEED_PARTS = (
    "matmuls",
    "attention",
    "elementwise",
    "tensor_parallel",
    "context_parallel",
    "pipeline_transfers",
    "pipeline_bubble",
    "data_parallel",
    "optimizer",
)
_MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "total")


def render(plan: "Plan", gpus_given: bool) -> str:
    """The plan, one fact a line, in blocks. `gpus_given` says whether the number of GPUs was asked for."""
    return "\n\n".join(
        "\n".join(block) for block in (_model(plan), _steps(plan), _memory(plan), _checkpoints(plan), _time(plan, gpus_given))
    )


def summary(plan: "Plan") -> str:
    """Memory, time and disk of a plan whose GPU was named, in three lines: what a configuration's comment carries."""
    assert plan.speed is not None
    checkpoint, memory = plan.config["checkpoint"], plan.memory[plan.config["train"]["precision"]]
    milestones = plan.train_steps // checkpoint["keep_every_steps"] if "keep_every_steps" in checkpoint else 0
    kept = checkpoint["keep_last"] + 1 + milestones  # the next one is whole before the oldest goes
    id_bytes = 2 if plan.config["model"]["vocab_size"] <= 2**16 else 4
    one, rate = plan.checkpoint.disk_bytes, f"{plan.tokens_per_second_per_gpu:,.0f} tokens/s a GPU (MFU {plan.mfu:.1%})"
    disk = f"{kept} checkpoints of {_size(one)} = {_size(kept * one)}"
    if checkpoint.get("upload"):
        disk += f", and {_size(one)} for each that waits for its upload"
    return "\n".join(
        (
            f"{plan.gpus} x {plan.speed.gpu}: {_size(memory.total)} of memory each; {plan.parameters:,} parameters",
            f"{_tokens(plan.train_tokens)} in {plan.days:.2f} days at {rate}, by a model, not measured",
            f"disk: {disk}; tokens {_size(plan.train_tokens * id_bytes)}",
        )
    )


def _model(plan: "Plan") -> Iterable[str]:
    parts = plan.parameters_by_part
    yield _line("parameters", f"{plan.parameters:,}")
    yield _line("", f"embedding {parts.embedding:,}; head {f'{parts.head:,}' if parts.head else 'tied to it'}")
    yield _line("", f"a layer {parts.layer:,}: attention {parts.attention:,}, MLP {parts.mlp:,}, norms the rest")
    yield _line("FLOPs per token", f"{plan.flops_per_token:,} = {plan.flops_formulas['flops_per_token']}")
    yield _line("", f"{plan.flops_per_token_6nd:,} = {plan.flops_formulas['flops_per_token_6nd']}")
    window = _size(plan.kv_cache_bytes_per_window)
    yield _line("KV cache (bf16)", f"{plan.kv_cache_bytes_per_token:,} bytes a token, {window} at the training length")


def _steps(plan: "Plan") -> Iterable[str]:
    yield _line("tokens per step", f"{plan.tokens_per_step:,}")
    for piece in plan.batch_ramp:
        yield _line("", f"{piece.tokens_per_step:,} in steps {piece.first_step:,} to {piece.last_step:,}")
    yield _line("steps", f"{plan.train_steps:,}")
    yield _line("tokens", f"{plan.train_tokens:,} ({_tokens(plan.train_tokens)})")
    for stage in plan.stages:
        steps = f"steps {stage.first_step:,} to {stage.last_step:,} ({stage.steps:,})"
        yield _line(f"  stage {stage.name}", f"{steps}, {_tokens(stage.tokens)}, {stage.datasets} datasets")
    for mark in plan.schedule:
        yield _line(f"  {mark.name}", f"step {mark.step:,}: learning rate {mark.learning_rate:.7g}")


def _memory(plan: "Plan") -> Iterable[str]:
    own = plan.config["train"]["precision"]
    memories = {own: plan.memory[own], **plan.memory}
    fullest = memories[own]
    where = f"stage {fullest.pipeline_stage} of the pipeline, " if plan.config["parallel"]["pipeline"] > 1 else ""
    rows = f"{fullest.micro_batches_in_flight} micro-batch{'es' if fullest.micro_batches_in_flight > 1 else ''} in flight"
    yield _line("memory of a device", "".join(f"{name + (' (this run)' if name == own else ''):>20}" for name in memories))
    for part in _MEMORY_PARTS:
        yield _line(f"  {part}", "".join(f"{_size(getattr(memory, part)):>20}" for memory in memories.values()))
    yield _line("", f"{where}{fullest.parameters:,} parameters, {rows}; an estimate, without CUDA's context,")
    yield _line("", "NCCL's buffers and fragmentation (formulas: smol_train/memory.py)")


def _checkpoints(plan: "Plan") -> Iterable[str]:
    yield _line("checkpoint on disk", _size(plan.checkpoint.disk_bytes))
    for save in plan.checkpoint.saves:
        cost = f"pause {save.pause_seconds:,.0f} s before writing, {_size(save.host_bytes_per_rank)} more host memory per rank"
        yield _line(f"  {save.sharding}", cost)
        yield _line("", f"({save.when})")
    yield from (_line("", line) for line in textwrap.wrap(plan.checkpoint.basis, 100))
    if upload := plan.config["checkpoint"].get("upload"):
        yield _line("  uploaded to", f"{upload}; one that has not arrived there stays on disk, whatever keep_last says")


def _time(plan: "Plan", gpus_given: bool) -> Iterable[str]:
    why = "as asked" if gpus_given else "one micro-batch a step for each rank; --gpus N for another number"
    yield _line("GPUs", f"{plan.gpus:,} ({why})")
    parallel = plan.config["parallel"]
    layout = " x ".join(f"{name} {parallel[name]}" for name in ("tensor", "pipeline", "context"))
    if parallel["virtual_pipeline"] > 1:
        yield _line("", f"pipeline interleaved: {parallel['virtual_pipeline']} model chunks a stage")
    if parallel["recompute"] != "none":
        yield _line("", f"activations recomputed: {parallel['recompute']}")
    yield _line("", f"{layout} x data {plan.data_parallel}, micro-batches a step and rank: {plan.micro_batches_per_step}")
    if plan.speed is None:
        yield _line("assumed", f"MFU {plan.mfu:.0%} of {plan.peak_tflops:,.0f} TFLOP/s")
    else:
        yield _line(
            "predicted", f"MFU {plan.mfu:.1%} of {plan.peak_tflops:,.0f} TFLOP/s ({plan.speed.gpu}; smol_train/speed.py)"
        )
        for name in (part for part in _SPEED_PARTS if getattr(plan.speed, part)):
            seconds = getattr(plan.speed, name)
            yield _line(f"  {name.replace('_', ' ')}", f"{seconds:.4f} s a step, {seconds / plan.speed.total:.1%}")
    rates = f"{plan.tokens_per_second_per_gpu:,.0f} a GPU, {plan.tokens_per_second:,.0f} in all"
    yield _line("tokens/s", f"{rates}, {plan.seconds_per_step:.3g} s a step")
    yield _line("time", f"{plan.hours:,.4g} hours = {plan.days:,.4g} days, {plan.gpu_hours:,.6g} GPU-hours")


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL}}{text}".rstrip()


def _size(count: int) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count = count / 1024  # type: ignore[assignment]
    raise AssertionError("unreachable")


def _tokens(count: int) -> str:
    value, unit = next(
        ((count / size, unit) for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")) if count >= size), (count, "")
    )
    return f"{value:,.4g} {unit} tokens".replace("  ", " ")
