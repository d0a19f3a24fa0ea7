"""How many GPUs, how long, for what price; and how many sequences a GPU serves: `python -m smol_train.plan` with sizes.

    --parameters 3e9 --tokens 11e12 --days 28 --mfu 0.3 --peak-tflops 720      how many GPUs? (without a configuration)
    --config C.yaml --days 28 [--tokens 2e12]                                  how many GPUs for a configuration?
    --config C.yaml --gpus 64 --days 14 --price 2.5                            how many tokens, and what do they cost?
    --config C.yaml --context 65536 --sequences 16 --gpu h100                  does the KV cache fit?

Of tokens, GPUs and days two are given, and the third follows from the FLOPs: by the rule 6 N D, and beside it with attention
counted, for which a configuration must say how many layers and heads there are. All of it is arithmetic before there is a
layout; the plan itself (plan.py) knows the layout, and `plan --gpu` its speed.
"""

import argparse
import json
import math

from smol_config import ConfigError, Section, load
from smol_console import above_zero, short, table, whole_number
from smol_train.config import RunConfig
from smol_train.gpus import DEFAULT_PEAK_TFLOPS, GPUS_PER_NODE, find_gpu, flops_per_second
from smol_train.plan_devices import next_devices
from smol_train.search import USABLE_MEMORY

_BF16 = 2
_WORK = ("parameters", "tokens", "days", "price")
_SERVING = ("context", "sequences")


class Budget(Section):
    """Tokens, GPUs and days that belong together by one count of FLOPs."""

    flops_per_token: float
    flops: float
    """Of all tokens."""
    tokens: float
    gpus: int
    """Rounded up to whole ones where it was asked for."""
    gpus_that_fit: int | None = None
    """The next number that the configuration's layout and batch divide over, where GPUs were asked for and there is one."""
    days: float
    gpu_hours: float
    """Of whole GPUs for all of the days."""
    cost: float | None = None
    """In the currency of the price, where one was given."""


class Work(Section):
    """What training takes."""

    parameters: float
    asked: str
    """tokens, gpus or days: what followed from the two others."""
    mfu: float
    """Assumed."""
    peak_tflops: float
    """Assumed, of one GPU."""
    by_6nd: Budget
    with_attention: Budget | None = None
    """At the training length, over the full square (ModelConfig.flops_per_token); None without a configuration."""


class Serving(Section):
    """What the KV cache takes, in bf16. Bytes."""

    context: int
    """Tokens of a sequence."""
    sequences: int
    bytes_per_token: int
    bytes_per_sequence: int
    bytes_in_all: int
    weights: int
    memory: int
    """That weights and caches may fill: USABLE_MEMORY of the GPU's."""
    fitting: int
    """Sequences whose caches fit beside the weights on one GPU; 0 also where the weights alone do not."""


class Sizing(Section):
    """Answers to what was asked."""

    work: Work | None = None
    serving: Serving | None = None


def budget(
    flops_per_token: float,
    rate: float,
    tokens: float | None = None,
    gpus: int | None = None,
    days: float | None = None,
    price: float | None = None,
    config: RunConfig | None = None,
) -> Budget:
    """The one of `tokens`, `gpus` and `days` that is None, from the two others.

    `rate`: FLOPs a second of one GPU; `price`: of a GPU hour; `config`: whose batch and layout the GPUs asked for should fit.
    """
    daily, fit = rate * 86_400, None
    if tokens is None:
        assert gpus is not None and days is not None
        tokens = gpus * days * daily / flops_per_token
    elif gpus is None:
        assert days is not None
        gpus = math.ceil(tokens * flops_per_token / (days * daily))
        fit = next_devices(config, gpus) if config else None
    else:
        days = tokens * flops_per_token / (gpus * daily)
    assert gpus is not None and days is not None
    hours = gpus * days * 24
    return Budget(
        flops_per_token=flops_per_token,
        flops=tokens * flops_per_token,
        tokens=tokens,
        gpus=gpus,
        gpus_that_fit=fit,
        days=days,
        gpu_hours=hours,
        cost=None if price is None else price * hours,
    )


def serving(config: RunConfig, context: int, sequences: int, memory_gib: float) -> Serving:
    """KV caches of `sequences` sequences of `context` tokens, and how many fit a GPU of `memory_gib` beside bf16 weights."""
    model = config.model
    one = model.kv_cache_bytes_per_token(_BF16) * context
    weights, memory = _BF16 * model.parameters, int(USABLE_MEMORY * memory_gib * 2**30)
    return Serving(
        context=context,
        sequences=sequences,
        bytes_per_token=model.kv_cache_bytes_per_token(_BF16),
        bytes_per_sequence=one,
        bytes_in_all=one * sequences,
        weights=weights,
        memory=memory,
        fitting=max(memory - weights, 0) // one,
    )


# --- command -------------------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of plan.py that ask for sizes in place of a plan."""
    group = parser.add_argument_group("sizes", "in place of the plan; of tokens, GPUs and days two give the third")
    group.add_argument("--parameters", type=above_zero, metavar="N", help="size of a model without --config, such as 3e9")
    group.add_argument("--tokens", type=above_zero, metavar="D", help="to train on; default: the configuration's")
    group.add_argument("--days", type=above_zero, help="of training")
    group.add_argument("--price", type=above_zero, help="of a GPU hour: adds the cost")
    group.add_argument(
        "--context", type=whole_number(1), metavar="TOKENS", help="KV cache of sequences so long; default: the training's"
    )
    group.add_argument("--sequences", type=whole_number(1), metavar="B", help="KV cache of so many at once (default 1)")


def asked(options: argparse.Namespace) -> bool:
    """Whether the command was given sizes."""
    return _given(options, (*_WORK, *_SERVING))


def run(options: argparse.Namespace) -> int:
    """Answer, print; 0. Raises ConfigError for questions that have no answer."""
    config = _config(options)
    work = _work(options, config) if _given(options, _WORK) else None
    cache = None
    if config is not None and _given(options, _SERVING):
        memory = options.memory or find_gpu(options.gpu or "h100").memory_gib
        cache = serving(config, options.context or config.data.sequence_length, options.sequences or 1, memory)
    result = Sizing(work=work, serving=cache)
    print(json.dumps(result.model_dump(mode="json"), indent=2) if options.json else render(result))
    return 0


def _given(options: argparse.Namespace, names: tuple[str, ...]) -> bool:
    return any(getattr(options, name) is not None for name in names)


def _config(options: argparse.Namespace) -> RunConfig | None:
    """The configuration, or None where --parameters stands for it."""
    if options.search or options.measure or options.summary:
        raise ConfigError("--search, --measure and --summary need the whole plan; ask for sizes without them")
    if options.memory is not None and not _given(options, _SERVING):
        raise ConfigError("--memory says where a KV cache must fit; add --context or --sequences, or leave it out")
    if options.config is not None and options.parameters is not None:
        raise ConfigError("--config and --parameters both say how large the model is; leave one of them out")
    if options.config is not None:
        return load(RunConfig, options.config, options.overrides, keep_unset=True)
    if options.overrides or _given(options, _SERVING):
        raise ConfigError("settings, --context and --sequences need a model's layers and heads; give --config C.yaml")
    if options.parameters is None:
        raise ConfigError("neither --config nor --parameters says how large the model is; give one of them")
    return None


def _work(options: argparse.Namespace, config: RunConfig | None) -> Work:
    given = {"tokens": options.tokens, "gpus": options.gpus, "days": options.days}
    if config is not None and options.tokens is None and (options.gpus is None or options.days is None):
        given["tokens"] = sum(piece.steps * piece.batch_size for piece in config.segments) * config.data.sequence_length
    missing = [name for name, value in given.items() if value is None]
    if len(missing) != 1:
        known = ", ".join(f"--{name}" for name in given if name not in missing) or "none"
        raise ConfigError(f"of --tokens, --gpus and --days two give the third, and given are {known}; give two of them")
    peak = _peak_tflops(options, config)
    settings = {**given, "rate": flops_per_second(options.mfu, peak), "price": options.price, "config": config}
    parameters = config.model.parameters if config else options.parameters
    attention = config.model.flops_per_token(config.data.sequence_length) if config else None
    return Work(
        parameters=parameters,
        asked=missing[0],
        mfu=options.mfu,
        peak_tflops=peak,
        by_6nd=budget(6 * parameters, **settings),
        with_attention=budget(attention, **settings) if attention else None,
    )


def _peak_tflops(options: argparse.Namespace, config: RunConfig | None) -> float:
    if options.peak_tflops is not None:
        return float(options.peak_tflops)
    if options.gpu is not None:
        return find_gpu(options.gpu).flops / 1e12
    return (config.logging.peak_tflops if config else None) or DEFAULT_PEAK_TFLOPS


# --- text ----------------------------------------------------------------------------------------------------------------


def render(sizing: Sizing) -> str:
    """The answers as text."""
    texts = [_work_text(sizing.work)] if sizing.work else []
    return "\n\n".join([*texts, *([_serving_text(sizing.serving)] if sizing.serving else [])])


def _work_text(work: Work) -> str:
    columns = [work.by_6nd, *([work.with_attention] if work.with_attention else [])]
    rows = [
        ["FLOPs a token", *(short(one.flops_per_token) for one in columns)],
        ["FLOPs", *(f"{one.flops:.3g}" for one in columns)],
        ["tokens", *(short(one.tokens) for one in columns)],
        ["GPUs", *(f"{one.gpus:,}" for one in columns)],
        [f"  nodes of {GPUS_PER_NODE}", *(f"{math.ceil(one.gpus / GPUS_PER_NODE):,}" for one in columns)],
        ["days", *(f"{one.days:,.4g}" for one in columns)],
        ["GPU-hours", *(f"{one.gpu_hours:,.0f}" for one in columns)],
    ]
    if work.asked == "gpus" and work.with_attention:
        fits = [f"{one.gpus_that_fit:,}" if one.gpus_that_fit else "batch too small" for one in columns]
        rows.insert(4, ["  that the batch divides over", *fits])
    if work.by_6nd.cost is not None:
        rows.append(["cost", *(f"{one.cost:,.0f}" for one in columns)])
    rate = f"MFU {work.mfu:.0%} of {work.peak_tflops:,.0f} TFLOP/s = {work.mfu * work.peak_tflops:,.4g} a GPU"
    return "\n".join(
        (
            f"{work.parameters:,.0f} parameters, assumed {rate}; {work.asked.replace('gpus', 'GPUs')} follow",
            "",
            table(["", "6 N D", "attention counted"][: len(columns) + 1], rows),
        )
    )


def _serving_text(serving: Serving) -> str:
    gib = 2**30
    return "\n".join(
        (
            f"KV cache in bf16: {serving.bytes_per_token:,} bytes a token",
            f"{serving.bytes_per_sequence / gib:,.4g} GiB for a sequence of {serving.context:,} tokens, "
            f"{serving.bytes_in_all / gib:,.4g} GiB for {serving.sequences:,}",
            f"{serving.fitting:,} of them fit a GPU, beside {serving.weights / gib:,.4g} GiB of weights in "
            f"{serving.memory / gib:,.4g} GiB ({USABLE_MEMORY:.0%} of its memory)",
        )
    )
