"""Tokens per second on 1, 2, 4 ... ranks of this machine: strong and weak scaling of each kind of parallelism.

    python -m benchmarks.scaling --synthetic                                      a tiny model, any machine
    python -m benchmarks.scaling --config C.yaml --ranks 1 2 4 8 --gpu h100       a node of GPUs, its own data

Every figure is a run of the real trainer under torchrun (smol_train.measure: 20 steps, the median of the last 15), all layouts
in turn, --repeats times. Strong: the configuration's global batch, whatever the ranks. Weak: that batch times the ranks.
Beside it stands the shape to expect: on GPUs the throughput model's (smol_train/speed.py), elsewhere what cores and the
pipeline's bubble leave. The picture gets the table's name with .png.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import cpu_model, parser_for, positive, run_benchmark, spread, versions, write_table
from benchmarks.synthetic_tokens import with_synthetic_data
from smol_config import UserError, load
from smol_train.config import RunConfig
from smol_train.gpus import find_gpu
from smol_train.measure import STEPS, WARMUP, measure_layout
from smol_train.search import Layout, apply
from smol_train.speed import pipeline_bubble, step_time

KINDS: dict[str, dict[str, int]] = {
    "data": {},
    "tensor": {"tensor": 1},
    "pipeline": {"pipeline": 1},
    "interleaved": {"pipeline": 1, "virtual_pipeline": 2},
}
"""What the ranks share, by the sizes that follow from it: 1 stands for the number of ranks."""
_QUICKSTART = "configs/quickstart.yaml"
_SMALL = ["data.sequence_length=256", "train.global_batch_size=4", "train.micro_batch_size=1"]


@dataclass
class Case:
    """One layout at one global batch."""

    scaling: str
    """strong or weak."""
    kind: str
    ranks: int
    config: RunConfig
    layout: Layout
    expected: float
    """Tokens per second and rank over one rank's."""
    rates: list[float] = field(default_factory=list)
    """Tokens per second and rank, one for each repeat."""


def cases(config: RunConfig, ranks: Sequence[int], kinds: Sequence[str], gpu: str | None) -> list[Case]:
    """One rank first, then all that divide, strong before weak; raises UserError where one rank alone cannot run."""
    found = []
    for scaling in ("strong", "weak"):
        for number in ranks:
            size = config.train.global_batch_size * (number if scaling == "weak" else 1)
            sized = config.model_copy(update={"train": config.train.model_copy(update={"global_batch_size": size})})
            for kind in kinds if number > 1 else ["one rank"] if scaling == "strong" else []:
                layout = _layout(sized, kind, number)
                if layout and not apply(sized, layout).problems():
                    expected = expectation(sized, layout, number, gpu) / expectation(config, _one(config), 1, gpu)
                    found.append(Case(scaling, kind, number, sized, layout, expected))
    if not found or found[0].ranks != 1:
        raise UserError(f"--ranks {list(ranks)}: give 1 first, to which the others are compared, and what runs on it")
    return found


def _layout(config: RunConfig, kind: str, ranks: int) -> Layout | None:
    """None where the batch does not divide."""
    sizes: dict[str, Any] = {"tensor": 1, "pipeline": 1, "virtual_pipeline": 1, "context": 1}
    sizes |= {name: ranks if size == 1 else size for name, size in KINDS.get(kind, {}).items()}
    data = ranks // (sizes["tensor"] * sizes["pipeline"])
    micro = config.train.micro_batch_size
    if config.train.global_batch_size % (micro * data):
        return None
    micro_batches = config.train.global_batch_size // (micro * data)
    return Layout(**sizes, data=data, micro_batch_size=micro, micro_batches=micro_batches)


def _one(config: RunConfig) -> Layout:
    layout = _layout(config, "one rank", 1)
    assert layout
    return layout


def expectation(config: RunConfig, layout: Layout, ranks: int, gpu: str | None) -> float:
    """Tokens per second and rank, in any unit: by the throughput model, or by cores and bubble alone."""
    if gpu:
        return step_time(apply(config, layout), ranks, find_gpu(gpu)).tokens_per_second_per_gpu
    bubble = pipeline_bubble(layout.pipeline, layout.micro_batches, layout.virtual_pipeline)
    return min(1.0, (os.cpu_count() or 1) / ranks) / (1 + bubble)


def measure(found: list[Case], repeats: int) -> None:
    """Fill in the cases' rates, all cases in turn; raises UserError with what a run said that failed."""
    for number in range(1, repeats + 1):
        for case in found:
            result = measure_layout(case.config, case.ranks, case.layout, 0.0)
            if result.measured is None:
                raise UserError(f"{case.scaling}, {case.kind}, {case.ranks} ranks: {result.failure}")
            case.rates.append(result.measured)
            name = f"{case.scaling} {case.kind} on {case.ranks}"
            print(f"{number}/{repeats} {name}: {result.measured:,.0f} tokens/s a rank", file=sys.stderr, flush=True)


# --- text ----------------------------------------------------------------------------------------------------------------


def render(found: list[Case], arguments: Sequence[str], gpu: str | None, load_average: float, picture: str) -> str:
    """The whole file."""
    return "\n".join(
        [
            *_head(found[0], arguments, gpu, load_average),
            "",
            *_table(found),
            "",
            *_notes(gpu, load_average),
            "",
            _image(picture),
            "",
        ]
    )


def _head(one: Case, arguments: Sequence[str], gpu: str | None, load_average: float) -> Iterator[str]:
    model, train = one.config.model, one.config.train
    machine = f"GPUs named {gpu}" if gpu else f"{cpu_model()}, gloo, one thread a rank"
    yield from (
        "# Scaling on the ranks of one machine",
        "",
        f"    python -m benchmarks.scaling {' '.join(arguments)}".rstrip(),
        "",
        f"- machine: {machine}; load average {load_average:.1f} when it began: what is above 0 is other work on it",
        f"- {versions(['torch', 'megatron-core'])}",
        f"- model: {model.parameters:,} parameters, {model.num_layers} layers; strong scaling at {train.global_batch_size} "
        f"windows of {one.config.data.sequence_length} tokens a step, weak at that many a rank, micro-batches of "
        f"{train.micro_batch_size}; {train.precision}",
        f"- each figure: {STEPS} steps of the real trainer, the median of the last {STEPS - WARMUP}; of {len(one.rates)} such "
        "runs the median (lowest to highest), the layouts taking turns",
    )


def _table(found: list[Case]) -> Iterator[str]:
    base = median(found[0].rates)
    yield "| scaling | ranks share | ranks | micro-batches | tokens/s in all | tokens/s a rank | of one rank's | expected |"
    yield "| --- | --- | ---: | ---: | ---: | --- | --- | ---: |"
    for case in found:
        total = f"{case.ranks * median(case.rates):,.0f}"
        share = spread([rate / base for rate in case.rates], "{:.0%}")
        yield (
            f"| {case.scaling} | {case.kind} | {case.ranks} | {case.layout.micro_batches} | {total} | "
            f"{spread(case.rates, '{:,.0f}')} | {share} | {case.expected:.0%} |"
        )


def _notes(gpu: str | None, load_average: float) -> Iterator[str]:
    if gpu:
        yield f"Expected: the throughput model's ratio on {gpu} (`smol_train/speed.py`), not a measurement."
        return
    cores = os.cpu_count() or 1
    if load_average > cores:
        yield "**The machine was busy: more work waited than it has cores. Ratios whose ranges overlap say nothing.**"
        yield ""
    yield (
        f"Expected: cores over ranks, where there are more ranks than the {cores} cores, and the pipeline's bubble; no "
        f"traffic, no overhead. {cores} cores say nothing of a cluster: this shows that the layouts run and what a tiny model "
        "pays for them here. Layouts that do not divide are left out; [scaling_paper](scaling_paper.md) predicts GPUs."
    )


def _image(picture: str) -> str:
    return f"![tokens per second in all by ranks, measured and expected]({picture})"


def draw(found: list[Case], path: Path) -> None:
    """Strong scaling on the left, weak on the right: measured with its range, and expected."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    one, base = found[0], median(found[0].rates)
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained", sharey=True)
    for place, scaling in zip(axes, ("strong", "weak"), strict=True):
        for number, kind in enumerate(dict.fromkeys(case.kind for case in found[1:])):
            line = [one, *(case for case in found if (case.scaling, case.kind) == (scaling, kind))]
            ranks = [case.ranks for case in line]
            middle, low, high = ([case.ranks * of(case.rates) for case in line] for of in (median, min, max))
            place.plot(ranks, middle, marker="o", color=f"C{number}", label=kind)
            place.vlines(ranks, low, high, color=f"C{number}", alpha=0.5)
            expected = [case.ranks * case.expected * base for case in line]
            place.plot(ranks, expected, linestyle=":", color=f"C{number}", label=f"{kind}, expected")
        place.set(xlabel="ranks", title=f"{scaling} scaling", xticks=sorted({case.ranks for case in found}), ylim=(0, None))
        place.grid(alpha=0.3)
    axes[0].set_ylabel("tokens/s in all")
    axes[0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


# --- command -------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(parse, run, arguments)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_for("scaling", __doc__)
    parser.add_argument("--config", metavar="C.yaml", help=f"default: {_QUICKSTART} with {' '.join(_SMALL)}")
    parser.add_argument(
        "--ranks", type=positive, nargs="+", default=[1, 2, 4], help="numbers of ranks, 1 first (default 1 2 4)"
    )
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS), help="what the ranks share (default: all)")
    parser.add_argument("--repeats", type=positive, default=3, help="runs of each layout (default %(default)s)")
    parser.add_argument("--gpu", help="a100, h100, h200 or b200: expect what the throughput model says of it")
    parser.add_argument("--synthetic", action="store_true", help="random tokens in a temporary folder instead of the data")
    parser.add_argument("--output", type=Path, default=Path("docs/results/scaling.md"), help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    return parser.parse_intermixed_args(arguments)


def run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Measure, print and write the table and the picture."""
    with tempfile.TemporaryDirectory(prefix="scaling_") as folder:
        _run(options, arguments, Path(folder))


def _run(options: argparse.Namespace, arguments: Sequence[str], folder: Path) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun has it for several ranks, also where there is one
    overrides = ["start_from=null", *([] if options.config else _SMALL), *options.overrides]
    path = options.config or _QUICKSTART
    if options.synthetic:
        overrides = with_synthetic_data(path, overrides, STEPS * max(options.ranks), folder / "tokens")
    load_average = os.getloadavg()[0]
    found = cases(load(RunConfig, path, overrides), options.ranks, options.kinds, options.gpu)
    measure(found, options.repeats)
    output: Path = options.output
    picture = output.with_suffix(".png")
    draw(found, picture)
    text = render(found, arguments, options.gpu, load_average, picture.name)
    write_table(output, text)


if __name__ == "__main__":
    sys.exit(main())
