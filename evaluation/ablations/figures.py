"""The pictures of a sweep's report: loss curves of all runs, and each score's differences with the band of noise."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.ablations import run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 200
"""Of a curve: each the mean of as many steps as it takes."""
COLUMNS = 3


def losses(record: dict[str, Any]) -> bytes | None:
    """Training losses by tokens as PNG, an arm a colour, a seed a line, diverged runs dotted; None before the first step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    colours = {arm: f"C{number}" for number, arm in enumerate(record["overrides"])}
    lowest, highest = math.inf, -math.inf
    for run in record["runs"]:
        lines = [line for line in run_folder.read_lines(Path(run["folder"]) / "metrics.jsonl") if "train/loss" in line]
        tokens, loss = _thinned([line["tokens"] for line in lines], run_folder.losses(lines))
        if not len(tokens):
            continue
        style = ":" if run["state"] == "diverged" else "-"
        axes.plot(tokens, loss, style, color=colours[run["arm"]], linewidth=1, label=run["arm"])
        if run["state"] == "done":  # a run that goes on, or has diverged, shall not set the range
            lowest, highest = min(lowest, np.nanmin(loss)), max(highest, np.nanquantile(loss[len(loss) // 20 :], 0.98))
    if not axes.lines:
        return None
    if lowest < highest:
        axes.set_ylim(lowest - 0.05 * (highest - lowest), highest)
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(named.values(), named, fontsize=8)
    axes.set(xlabel="tokens", ylabel="training loss (nats)")
    axes.grid(alpha=0.3)
    return _png(figure)


def differences(record: dict[str, Any]) -> bytes | None:
    """A panel a score: a point a change, the difference from the baseline, in its band of noise; None without comparisons."""
    from matplotlib.figure import Figure

    arms = [arm for arm, of_arm in record["comparisons"].items() if of_arm]
    names = [name for name in record["higher_is_better"] if any(name in record["comparisons"][arm] for arm in arms)]
    if not names:
        return None
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, (0.9 + 0.3 * len(arms)) * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    colours = {"better": "#1a7f37", "worse": "#b42318", "within noise": "grey", "noise unknown": "black"}
    for panel, name in zip(panels.flat, names, strict=False):
        for row, arm in enumerate(arms):
            if one := record["comparisons"][arm].get(name):
                if one["band"] is not None:
                    panel.barh(row, 2 * one["band"], left=-one["band"], height=0.7, color="0.88")
                panel.plot(one["difference"], row, "o", color=colours[one["verdict"]])
        panel.use_sticky_edges = False  # of the bars: the axis would end with them
        panel.axvline(0, color="grey", linewidth=0.8)
        panel.set_yticks(range(len(arms)), arms, fontsize=8)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.tick_params(axis="x", labelsize=7)
        arrow = "higher" if record["higher_is_better"][name] else "lower"
        panel.set_title(f"{name.removeprefix('eval/')} ({arrow} is better)", fontsize=9)
    for panel in panels.flat[len(names) :]:
        panel.set_axis_off()
    figure.suptitle(f"difference from {record['baseline']}; grey: what seeds alone do", fontsize=9)
    return _png(figure)


def _thinned(tokens: list[int], loss: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS means over neighbouring steps."""
    size = max(1, len(loss) // POINTS)
    whole = len(loss) // size * size
    return tuple(np.array(values[:whole], dtype=float).reshape(-1, size).mean(axis=1) for values in (tokens, loss))


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
