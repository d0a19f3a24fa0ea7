"""The plan on paper from 8 to 384 GPUs: the throughput model against published runs, strong and weak scaling, a picture.

python -m benchmarks.scaling_model [--output docs/results/scaling_paper.md]

Arithmetic only: no GPU, no data, seconds. The picture gets the table's name with .png.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.common import parser_for
from benchmarks.scaling_published import PUBLISHED, SOURCES, ULTRASCALE, Published, run_config
from smol_config import load
from smol_train.config import RunConfig
from smol_train.gpus import GPUS
from smol_train.memory import device_memory
from smol_train.search import search
from smol_train.speed import KERNEL_SHARE, StepTime, step_time

SMOLLM3 = Path(__file__).resolve().parents[1] / "configs" / "smollm3" / "pretrain.yaml"
SIZES = (8, 16, 32, 48, 64, 96, 128, 192, 384)
H100 = GPUS["h100"]
MEASURED, MEDIAN = "13,500 to 14,000", 13_817
PARTS = ("matmuls", "attention", "elementwise", "tensor_parallel", "data_parallel", "optimizer")


def smollm3(*overrides: str) -> RunConfig:
    return load(RunConfig, SMOLLM3, overrides, keep_unset=True)


def predict(row: Published, kernel_share: float = KERNEL_SHARE) -> float:
    """Tokens per second and GPU that the model gives for a published run."""
    return step_time(row.config(), row.gpus, H100, kernel_share=kernel_share).tokens_per_second_per_gpu


def strong(gpus: int, *overrides: str) -> StepTime:
    """SmolLM3's global batch and layout on `gpus` devices."""
    return step_time(smollm3(*overrides), gpus, H100)


def weak(gpus: int, *overrides: str) -> StepTime:
    """SmolLM3's layout with three windows a copy, as on its 384 GPUs, whatever the number of devices."""
    return step_time(smollm3(f"train.global_batch_size={gpus // 2 * 3}", *overrides), gpus, H100)


def tensor_ratios() -> dict[int, float]:
    """Throughput by tensor-parallel size over that at the first: SmolLM3's shape with as many key-value heads as heads."""
    model = {**smollm3().model.model_dump(), "num_query_groups": 16}
    rates = {}
    for tensor, (_, micro) in ULTRASCALE.items():
        config = run_config(model, 4096, micro, micro, {"tensor": tensor, "sequence": True})
        rates[tensor] = step_time(config, tensor, H100).tokens_per_second_per_gpu
    return {tensor: rate / rates[2] for tensor, rate in rates.items()}


# --- text ----------------------------------------------------------------------------------------------------------------


def render(picture: str) -> str:
    """The whole file."""
    parts = (_head(), _calibration(), _published(), _tensor(), _strong(), _weak(picture), _limits())
    return "\n".join(line for part in parts for line in [*part, ""])


def _head() -> Iterator[str]:
    yield from (
        "# Throughput and scaling on paper",
        "",
        "    python -m benchmarks.scaling_model",
        "",
        'Every figure under "predicted" is arithmetic (`smol_train/speed.py`); nothing here was measured by this repository. '
        'Figures under "published" are others\' measurements on H100s. The model has one calibrated number, found on the first '
        "run below and on no other.",
    )


def _calibration() -> Iterator[str]:
    raw, own = step_time(smollm3(), 384, H100, kernel_share=1.0), strong(384)
    yield from (
        "## The run it is calibrated on",
        "",
        f"SmolLM3-3B on 384 H100s (tensor 2, micro-batch 3, global batch 576 of 4,096): published {MEASURED} tokens/s a GPU, "
        f"median {MEDIAN:,} (Smol Training Playbook).",
        "",
        "| | tokens/s a GPU | MFU | against the median |",
        "| --- | ---: | ---: | ---: |",
    )
    for name, time in (("formulas alone", raw), (f"kernels reach {KERNEL_SHARE} of them (calibrated)", own)):
        rate = time.tokens_per_second_per_gpu
        yield f"| {name} | {rate:,.0f} | {time.mfu:.1%} | {rate / MEDIAN - 1:+.1%} |"
    yield ""
    yield (
        "Of the predicted step: "
        + ", ".join(f"{part.replace('_', ' ')} {getattr(own, part) / own.total:.1%}" for part in PARTS)
        + "."
    )


def _published() -> Iterator[str]:
    errors = [predict(row) / row.tokens_per_second_per_gpu - 1 for row in PUBLISHED]
    yield from (
        "## Runs that it has not seen",
        "",
        "| run | from | GPUs | published | predicted | error | formulas alone | error |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    )
    for row, error in zip(PUBLISHED, errors, strict=True):
        rate, raw = row.tokens_per_second_per_gpu, predict(row, 1.0)
        yield (
            f"| {row.name} | {row.source} | {row.gpus} | {rate:,.0f} | {predict(row):,.0f} | {error:+.0%} | {raw:,.0f} | "
            f"{raw / rate - 1:+.0%} |"
        )
    yield ""
    yield from (f"- {name}: {text}." for name, text in SOURCES.items())
    share = median(_share(row) for row in PUBLISHED)
    yield (
        f"- The calibrated model is too slow for them, by {-median(errors):.0%} in the median ({-max(errors):.0%} to "
        f"{-min(errors):.0%}): SmolLM3's run reached a smaller part of its hardware than they did. They would calibrate to "
        f"about {share:.2f} in place of {KERNEL_SHARE}. Plans by this model are therefore cautious: a run like SmolLM3's, "
        "not a tuned one."
    )


def _share(row: Published) -> float:
    """The kernel share with which the model would give the published figure, by bisection."""
    low, high = 0.1, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if predict(row, middle) < row.tokens_per_second_per_gpu else (low, middle)
    return low


def _tensor() -> Iterator[str]:
    yield from (
        "## Tensor parallelism",
        "",
        "Throughput relative to tensor 2: Ultra-Scale Playbook (nanotron), figure tp_sp_scaling, whose shape and number "
        "of GPUs are not given there, against SmolLM3's shape with 16 key-value heads at the figure's micro-batches. "
        "The model is too hopeful at 8 and more so across nodes: latency of collectives is not in it, and 16 is where "
        "tensor parallelism leaves the node.",
        "",
        "| tensor | micro-batch | published | predicted |",
        "| ---: | ---: | ---: | ---: |",
    )
    first = ULTRASCALE[2][0]
    for tensor, ratio in tensor_ratios().items():
        rate, micro = ULTRASCALE[tensor]
        yield f"| {tensor} | {micro} | {rate / first:.2f} | {ratio:.2f} |"


def _strong() -> Iterator[str]:
    base = strong(SIZES[0]).tokens_per_second_per_gpu
    yield from (
        "## Strong scaling: SmolLM3-3B's own global batch of 2.36 M tokens",
        "",
        "Its layout (tensor 2, micro-batch 3) and, beside it, the layout that `--search` ranks first.",
        "",
        "| GPUs | micro-batches | GiB | s a step | tokens/s a GPU | of 8 GPUs' | 11.1 T tokens | first by search | GiB | "
        "tokens/s a GPU |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    )
    for gpus in SIZES:
        config, time = smollm3(), strong(gpus)
        memory = device_memory(config, "bf16", gpus // 2).total / 2**30
        days = config.train_steps * time.total / 86_400
        best = search(config, gpus, H100).ranked[0]
        layout = f"tensor {best.layout.tensor}, pipeline {best.layout.pipeline}, micro-batch {best.layout.micro_batch_size}"
        yield (
            f"| {gpus} | {192 * 2 // gpus} | {memory:.0f} | {time.total:.3f} | {time.tokens_per_second_per_gpu:,.0f} | "
            f"{time.tokens_per_second_per_gpu / base:.1%} | {days:,.0f} days | {layout} | {best.memory_bytes / 2**30:.0f} | "
            f"{best.speed.tokens_per_second_per_gpu:,.0f} |"
        )


def _weak(picture: str) -> Iterator[str]:
    base = weak(SIZES[0]).tokens_per_second_per_gpu
    yield from (
        "## Weak scaling: three windows a copy, one micro-batch a step",
        "",
        "| GPUs | tokens a step | tokens/s a GPU | of 8 GPUs' | without overlap | of 8 GPUs' with it |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    )
    for gpus in SIZES:
        time, plain = weak(gpus), weak(gpus, "parallel.overlap=false")
        yield (
            f"| {gpus} | {gpus // 2 * 3 * 4096:,} | {time.tokens_per_second_per_gpu:,.0f} | "
            f"{time.tokens_per_second_per_gpu / base:.1%} | {plain.tokens_per_second_per_gpu:,.0f} | "
            f"{plain.tokens_per_second_per_gpu / base:.1%} |"
        )
    yield ""
    yield f"![tokens per second and GPU by the number of GPUs, and published against predicted]({picture})"


def _limits() -> Iterator[str]:
    yield from (
        "## What it does not know",
        "",
        "- Latency of collectives, stragglers and congestion: where traffic hides behind compute it predicts nearly "
        "flat lines. Real lines fall: MPT-1B lost 2 % and MPT-3B 7 % from 8 or 16 to 64 GPUs, and the Ultra-Scale "
        "Playbook's figure dp_scaling (shape and batch not given) falls from 40,150 tokens/s a GPU on 8 to 15,700 on "
        "256.",
        "- Kernel launches: a host that cannot keep up slows small models and small micro-batches most.",
        "- Attention is FlashAttention-2's, 35 % of an H100, over whole windows; newer kernels are faster, documents shorter.",
        "- H200 and B200: the H100's shares of their peaks are taken; no published run was compared.",
        "- Pauses: evaluation, checkpoints, restarts. SmolLM3's makers count 24 days of training in 30 of calendar.",
    )


def draw(path: Path) -> None:
    """Scaling on the left, published against predicted on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    lines = {
        "strong: global batch 576": [strong(gpus) for gpus in SIZES],
        "weak: 3 windows a copy": [weak(gpus) for gpus in SIZES],
        "weak, traffic not overlapped": [weak(gpus, "parallel.overlap=false") for gpus in SIZES],
    }
    for label, times in lines.items():
        left.plot(SIZES, [time.tokens_per_second_per_gpu for time in times], marker="o", label=label)
    left.errorbar([384], [13_750], yerr=250, fmt="k_", capsize=4, label="published, SmolLM3 (calibrated on it)")
    left.set(xscale="log", xlabel="H100 GPUs", ylabel="tokens/s a GPU", ylim=(0, 16_000), title="SmolLM3-3B, predicted")
    left.set_xticks([8, 16, 32, 64, 128, 384])
    left.xaxis.set_major_formatter(ScalarFormatter())
    left.xaxis.set_minor_locator(NullLocator())
    left.legend(loc="lower left")
    for source in SOURCES:
        rows = [row for row in PUBLISHED if row.source == source]
        right.scatter([row.tokens_per_second_per_gpu for row in rows], [predict(row) for row in rows], label=source)
    right.scatter(
        [MEDIAN], [strong(384).tokens_per_second_per_gpu], marker="*", color="k", s=90, label="SmolLM3 (calibrated on it)"
    )
    ends = (5_000, 90_000)
    right.plot(ends, ends, color="grey", linewidth=1, label="equal")
    right.plot(ends, [0.75 * end for end in ends], color="grey", linewidth=1, linestyle=":", label="25 % too slow")
    right.set(xscale="log", yscale="log", xlabel="published tokens/s a GPU", ylabel="predicted", title="H100, bf16")
    right.legend(loc="upper left")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_for("scaling_model", __doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/results/scaling_paper.md"), help="default: %(default)s")
    output = parser.parse_args(arguments).output
    picture = output.with_suffix(".png")
    draw(picture)
    output.write_text(render(picture.name), encoding="utf8")
    print(f"written: {output}, {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
