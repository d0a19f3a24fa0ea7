"""The table of benchmarks.data_loader, as Markdown, and the quality of the order."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import cpu_model, spread, versions
from benchmarks.data_loader_job import Job, Result

PACKAGES = ("torch", "megatron-core", "nvidia-dali-cuda130", "numpy")
NAMES = {
    "ours": "this repository, through DALI",
    "megatron": "Megatron-Core GPTDataset",
    "numpy": "numpy memory map",
    "pread": "plain pread, bytes only",
}
WINDOWS = (48_828, 1_000_003)
"""Epochs whose order is looked at: of the 200-million-token corpus, and one that is no multiple of anything."""
LAGS = 64


@dataclass(frozen=True)
class Report:
    """All that the table is made from."""

    command: str
    load_average: float
    tokens: int
    job: Job
    windows: int
    starts: dict[tuple[str, int], list[Result]]
    rates: dict[str, list[Result]]
    quality: dict[int, tuple[float, float, float]]


def order_quality() -> dict[int, tuple[float, float, float]]:
    """By epoch size: (chi-square per degree of freedom, largest lag correlation, three standard errors of one).

    Chi-square: positions of the epoch and windows are cut into 32 parts each; in a true shuffle the 1,024 cells fill evenly.
    The mean of eight epochs. Lag correlation: of the windows at positions i and i + lag, lags 1 to 64.
    """
    return {size: _quality(size) for size in WINDOWS}


def _quality(size: int) -> tuple[float, float, float]:
    from smol_data.order import Order
    from smol_data.schedule import Segment

    segments = [Segment("only", {"tokens": 1.0}, 0, 8 * size, 0, 1)]
    places = Order(segments, 6, {"tokens": size}).locate_range(0, 8 * size)
    order = np.array([place.window for place in places]).reshape(8, size)
    largest = max(abs(_correlation(order[0], lag)) for lag in range(1, LAGS + 1))
    return float(np.mean([_chi_square(epoch) for epoch in order])), largest, 3 / size**0.5


def _chi_square(order: NDArray[np.int64], parts: int = 32) -> float:
    where = np.arange(len(order)) * parts // len(order)
    cells = np.bincount(where * parts + order * parts // len(order), minlength=parts**2)
    expected = len(order) / parts**2
    return float(((cells - expected) ** 2 / expected).sum() / (parts - 1) ** 2)


def _correlation(order: NDArray[np.int64], lag: int) -> float:
    return float(np.corrcoef(order[:-lag], order[lag:])[0, 1])


def render(report: Report) -> str:
    """The whole file."""
    parts = (_head(report), _starts(report), _rates(report), _order(report), _notes(report))
    return "\n".join(line for part in parts for line in [*part, ""])


def _head(report: Report) -> list[str]:
    job = report.job
    return [
        "# Data loader: start, memory, speed, order",
        "",
        f"    {report.command.strip()}",
        "",
        f"- Machine: {cpu_model()}; load average at the start {report.load_average:.1f}.",
        f"- Versions: {versions(PACKAGES)}.",
        f"- Data: {report.tokens:,} random ids (uint32) in documents of 800 tokens in the mean, one shard; "
        f"global batches of {job.global_batch} windows of {job.sequence_length:,} tokens, micro-batches of {job.micro_batch}.",
        "- Medians over the repeats, with the lowest and the highest; each in a fresh process, the loaders in turns.",
    ]


def _starts(report: Report) -> list[str]:
    steps = sorted({steps for _, steps in report.starts})
    lines = [
        "## Opening a run",
        "",
        "Seconds from opening to the first batch, imports over; private anonymous memory that it took.",
        "",
        "| | " + " | ".join(f"{number:,} steps" for number in steps) + " |",
        "| --- |" + " ---: |" * len(steps),
    ]
    for loader in ("ours", "megatron", "numpy"):
        cells: dict[str, list[str]] = {"s": [], "MB": []}
        for number in steps:
            results = report.starts.get((loader, number), [])
            cells["s"].append(spread([one.first_batch for one in results], "{:.3f}") if results else "does not fit")
            cells["MB"].append(spread([one.memory / 1e6 for one in results], "{:,.0f}") if results else "does not fit")
        lines += [f"| {NAMES[loader]}, {unit} | " + " | ".join(values) + " |" for unit, values in cells.items()]
    return lines


def _rates(report: Report) -> list[str]:
    lines = [
        "## Reading",
        "",
        f"Million tokens per second over {report.windows:,} windows in shuffled order.",
        "",
        "| | page cache dropped | all pages in the cache |",
        "| --- | ---: | ---: |",
    ]
    for loader, results in report.rates.items():
        cold, warm = (spread([(getattr(one, kind) or 0.0) / 1e6 for one in results], "{:,.0f}") for kind in ("cold", "warm"))
        lines.append(f"| {NAMES[loader]} | {cold} | {warm} |")
    return lines


def _order(report: Report) -> list[str]:
    lines = [
        "## Order",
        "",
        "| windows in an epoch | chi-square per degree of freedom | largest lag correlation, 1 to 64 | three standard errors |",
        "| ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {size:,} | {chi:.3f} | {lag:.4f} | {bound:.4f} |" for size, (chi, lag, bound) in report.quality.items()]
    return lines


def _notes(report: Report) -> list[str]:
    return [
        "- Ours hands out tokens, labels, loss mask, positions and document boundaries of packed documents; GPTDataset hands "
        "out tokens, labels, and a loss mask and positions that it caches because they do not look at documents (the faster of "
        "its settings); the memory map hands out tokens and labels.",
        "- GPTDataset: torch's DataLoader without workers, which is its fastest here; its index is built with an empty cache "
        "folder. At 3.2 million steps it would hold about 220 GB (extrapolated from the shorter runs): not run.",
        "- The memory map's index is a permutation of one epoch and does not grow; it has no mixtures and no resume.",
        "- pread reads the bytes of the windows and makes no tensors: what storage gives to one that waits for each read.",
    ]
