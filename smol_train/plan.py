"""What a run will be, before anything runs: parameters, FLOPs, steps, rates, memory, checkpoints, hours.

    python -m smol_train.plan --config configs/smollm3/pretrain.yaml --gpus 384
    python -m smol_train.plan --config C.yaml --mfu 0.4 --peak-tflops 989 train.micro_batch_size=4
    python -m smol_train.plan --config C.yaml --gpus 64 --gpu h100 [--search [--memory 60] [--measure]]
    python -m smol_train.plan --parameters 3e9 --tokens 11e12 --days 28 [--price 2.5]     no layout yet: sizing.py
    python pretrain_smol.py --config C.yaml --dry-run [--json]      the same behind the resolved configuration

Everything follows from the configuration by arithmetic (model/config.py, schedule.py, memory.py): no data, no GPU, and
neither torch nor Megatron-Core is imported. Hours rest on an assumed utilisation, which the output states, or, with
--gpu, on the throughput model (speed.py); --search ranks the layouts by it (search.py).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from smol_config import ConfigError, Section, load, to_yaml, unset_variables
from smol_console import above_zero, exit_code, whole_number
from smol_train import plan_steps, plan_text, sizing
from smol_train.config import RunConfig
from smol_train.gpus import DEFAULT_MFU, DEFAULT_PEAK_TFLOPS, Gpu, find_gpu, flops_per_second
from smol_train.measure import measure
from smol_train.measure import render as render_measured
from smol_train.memory import PRECISIONS, CheckpointCost, DeviceMemory, checkpoint_cost, device_memory
from smol_train.plan_devices import devices
from smol_train.search import render as render_search
from smol_train.search import search
from smol_train.speed import StepTime, step_time

FLOPS_FORMULAS = {
    "flops_per_token": "6 x weights of the matrix products + 12 x layers x heads x head_dim x sequence_length",
    "flops_per_token_6nd": "6 x parameters (attention's scores left out)",
}


class ParameterParts(Section):
    """Where the parameters are."""

    embedding: int
    head: int
    """0 when it is tied to the embedding."""
    layer: int
    """One layer, its norms included."""
    attention: int
    """Of one layer."""
    mlp: int
    """Of one layer."""


class Plan(Section):
    """All of it, as it goes to JSON. Bytes are bytes, durations are in the name."""

    parameters: int
    parameters_by_part: ParameterParts
    flops_per_token: int
    """Forward and backward, attention counted at the training length."""
    flops_per_token_6nd: int
    flops_formulas: dict[str, str]
    tokens_per_step: int
    """Of a step with the full batch."""
    batch_ramp: list[plan_steps.BatchPlan]
    """The batches before it."""
    train_steps: int
    train_tokens: int
    stages: list[plan_steps.StagePlan]
    schedule: list[plan_steps.Landmark]
    gpus: int
    data_parallel: int
    micro_batches_per_step: int
    """Of one rank: gradient accumulation."""
    memory: dict[str, DeviceMemory]
    """By precision; the run's own is train.precision."""
    checkpoint: CheckpointCost
    kv_cache_bytes_per_token: int
    """bf16, all layers."""
    kv_cache_bytes_per_window: int
    """At the training length."""
    mfu: float
    """Assumed, or predicted where `speed` is given."""
    peak_tflops: float
    """Assumed, of one device."""
    speed: StepTime | None = None
    """The throughput model's step, where a GPU was named."""
    tokens_per_second_per_gpu: float
    tokens_per_second: float
    seconds_per_step: float
    hours: float
    days: float
    gpu_hours: float
    config: dict[str, Any]


def plan(
    config: RunConfig,
    gpus: int | None = None,
    mfu: float = DEFAULT_MFU,
    peak_tflops: float | None = None,
    gpu: str | None = None,
) -> Plan:
    """The plan of `config` on `gpus` devices; None: as many as give every rank one micro-batch a step, or one group of them.

    `peak_tflops` falls back to logging.peak_tflops, then to an H100's. `gpu`, a name of gpus.GPUS, has speed.py predict
    what `mfu` and `peak_tflops` otherwise assume. Raises ConfigError where the batch does not fit.
    """
    speed = None
    if gpu is not None:
        gpus, _ = devices(config, gpus)
        speed = step_time(config, gpus, find_gpu(gpu))
        mfu, peak_tflops = speed.mfu, find_gpu(gpu).flops / 1e12
    peak = peak_tflops if peak_tflops is not None else config.logging.peak_tflops or DEFAULT_PEAK_TFLOPS
    achieved = flops_per_second(mfu, peak)
    gpus, data_parallel = devices(config, gpus)
    model, length = config.model, config.data.sequence_length
    memory: dict[str, DeviceMemory] = {name: device_memory(config, name, data_parallel) for name in PRECISIONS}
    flops = model.flops_per_token(length)
    per_gpu = achieved / flops
    stages = plan_steps.stages(config)
    tokens = sum(stage.tokens for stage in stages)
    hours = (_seconds(config, gpus, find_gpu(gpu)) if gpu else tokens / (per_gpu * gpus)) / 3600
    return Plan(
        parameters=model.parameters,
        parameters_by_part=ParameterParts(
            embedding=model.embedding_parameters,
            head=0 if model.tie_embeddings else model.embedding_parameters,
            layer=model.layer_parameters,
            attention=model.attention_parameters,
            mlp=model.mlp_parameters,
        ),
        flops_per_token=flops,
        flops_per_token_6nd=model.flops_per_token_6nd,
        flops_formulas=FLOPS_FORMULAS,
        tokens_per_step=config.tokens_per_step,
        batch_ramp=plan_steps.ramp(config),
        train_steps=config.train_steps,
        train_tokens=tokens,
        stages=stages,
        schedule=plan_steps.landmarks(config),
        gpus=gpus,
        data_parallel=data_parallel,
        micro_batches_per_step=config.train.global_batch_size // (config.train.micro_batch_size * data_parallel),
        memory=memory,
        checkpoint=checkpoint_cost(config, memory[config.train.precision].parameters),
        kv_cache_bytes_per_token=model.kv_cache_bytes_per_token(),
        kv_cache_bytes_per_window=model.kv_cache_bytes_per_token() * length,
        mfu=mfu,
        peak_tflops=peak,
        speed=speed,
        tokens_per_second_per_gpu=per_gpu,
        tokens_per_second=per_gpu * gpus,
        seconds_per_step=config.tokens_per_step / (per_gpu * gpus),
        hours=hours,
        days=hours / 24,
        gpu_hours=hours * gpus,
        config=config.model_dump(mode="json", exclude_none=True),
    )


def _seconds(config: RunConfig, gpus: int, gpu: Gpu) -> float:
    """Of the whole run by the throughput model: small batches of a ramp are slower per token."""
    by_size: dict[int, int] = {}
    for segment in config.segments:
        by_size[segment.batch_size] = by_size.get(segment.batch_size, 0) + segment.steps
    sized = {size: config.train.model_copy(update={"global_batch_size": size}) for size in by_size}
    return sum(
        steps * step_time(config.model_copy(update={"train": sized[size]}), gpus, gpu).total for size, steps in by_size.items()
    )


# --- commands ----------------------------------------------------------------------------------------------------------


def dry_run(config_path: str, overrides: Sequence[str] = (), as_json: bool = False) -> int:
    """Print the resolved configuration and the plan, or both as one JSON object; 0, or UserError for a bad configuration.

    Environment variables that are not set stay as written, so that a plan can be made anywhere; stderr names them.
    """
    return _show(config_path, overrides, as_json, with_config=True)


def _show(path: str, overrides: Sequence[str], as_json: bool, with_config: bool, summary: bool = False, **how: Any) -> int:
    """Print the plan of a file; `how` is plan()'s."""
    config = load(RunConfig, path, overrides, keep_unset=True)
    result = plan(config, **how)
    if unset := unset_variables(path, overrides):
        print(f"note: not set in the environment and left as written: {', '.join(unset)}", file=sys.stderr)
    if as_json:
        print(json.dumps(result.model_dump(mode="json"), indent=2))
        return 0
    if summary and result.speed is None:
        raise ConfigError("--summary has no --gpu, whose speed it needs; add e.g. --gpu h100")
    if summary:
        print(plan_text.summary(result))
        return 0
    if with_config:
        print(f"# {path}, resolved\n{to_yaml(config)}")
    print(plan_text.render(result, gpus_given=how.get("gpus") is not None))
    return 0


def _search(options: argparse.Namespace) -> int:
    if options.gpus is None:
        raise ConfigError("--search has no --gpus; say on how many devices, e.g. --gpus 64")
    config = load(RunConfig, options.config, options.overrides, keep_unset=not options.measure)
    result = search(config, options.gpus, find_gpu(options.gpu or "h100"), options.memory)
    measured = measure(config, result) if options.measure else []
    if options.json:
        print(json.dumps({**result.model_dump(mode="json"), "measured": [one.model_dump() for one in measured]}, indent=2))
    else:
        print("\n\n".join([render_search(result), *([render_measured(measured)] if measured else [])]))
    return 0 if result.ranked else 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m smol_train.plan",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="C.yaml", help="the run's configuration")
    parser.add_argument("--gpus", type=whole_number(1), help="devices; default: one micro-batch a step for each rank")
    parser.add_argument("--mfu", type=float, default=DEFAULT_MFU, help="assumed model FLOPs utilisation (default %(default)s)")
    parser.add_argument(
        "--peak-tflops", type=float, help="of one device; default logging.peak_tflops, then 989 (H100, dense bf16)"
    )
    parser.add_argument(
        "--gpu",
        help="a100, h100, h200 or b200: speed by the throughput model, in place of --mfu; of sizes only peak and memory",
    )
    parser.add_argument("--summary", action="store_true", help="print the lines that a configuration's comment carries")
    parser.add_argument(
        "--search", action="store_true", help="rank the layouts on --gpus devices (of kind --gpu, default h100)"
    )
    parser.add_argument(
        "--memory", type=above_zero, metavar="GIB", help="with --search or --context: of one device; default: the GPU's own"
    )
    parser.add_argument("--measure", action="store_true", help="with --search: time the best three on this node's ranks")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    sizing.add_options(parser)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    options = parser.parse_intermixed_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if sizing.asked(options):
        return sizing.run(options)
    if options.config is None:
        raise ConfigError("--config is missing; give a configuration, or --parameters, --tokens and --days for sizes alone")
    if options.search:
        return _search(options)
    if options.memory is not None or options.measure:
        raise ConfigError(
            "--memory and --measure only mean something with --search (--memory also with --context); add it or leave them out"
        )
    how = {name: getattr(options, name) for name in ("gpus", "mfu", "peak_tflops", "gpu")}
    return _show(options.config, options.overrides, options.json, False, options.summary, **how)


if __name__ == "__main__":
    sys.exit(main())
