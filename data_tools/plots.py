"""Pictures of a mixture and of datasets' documents, drawn without a display. Used by `mixture` and `stats`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.document_lengths import EDGES, THRESHOLDS, Lengths
from data_tools.mixture_plan import MixturePlan
from data_tools.output import check_file
from smol_config import UserError
from smol_console import percent, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
COLOURS = {
    "English web": "#4c78a8",
    "multilingual": "#72b7b2",
    "code": "#f58518",
    "math": "#54a24b",
    "reasoning": "#b279a2",
    "unknown": "#9d9d9d",
}
NAMED_SHARE = 0.0098  # a block below this share has no room for a name, even upright
EDGED_SHARE = 0.003  # nor, below this, for a white edge
LINES = 10  # as many as there are colours
LETTERS_ACROSS, LETTERS_UPRIGHT = 170, 14  # that fit the picture's width and a bar's height


def check_picture(path: Path) -> Path:
    """`path`, if a picture can be written there; raises UserError on another format or a folder that is missing."""
    if path.suffix not in FORMATS:
        raise UserError(f"--output {path}: {path.suffix or 'no ending'} is no format to draw in; use {', '.join(FORMATS)}")
    return check_file(path)


def save(figure: Figure, path: Path) -> None:
    """Write a picture whole or not at all; raises UserError when the disk refuses it."""
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        figure.savefig(partial, dpi=130)
        partial.rename(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror or error}; check its place, rights and space") from error


def draw_mixture(path: Path, plan: MixturePlan) -> None:
    """A bar a stage: a block a dataset, in its group's colour, with the groups' shares above."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    picture = Figure(figsize=(13, 1.5 + 1.15 * len(plan.stages)), layout="constrained")
    axis = picture.subplots()
    groups: dict[str, float] = {}
    for row, stage in enumerate(plan.stages):
        at = 0.0
        for group, share in stage.groups(plan.sources).items():
            groups[group] = max(groups.get(group, 0.0), share)
        order = list(COLOURS)
        blocks = sorted(stage.draws, key=lambda draw: (order.index(plan.sources[draw.dataset].group), -draw.share))
        for draw in blocks:
            colour = COLOURS[plan.sources[draw.dataset].group]
            axis.barh(
                row,
                draw.share,
                height=0.62,
                left=at,
                color=colour,
                edgecolor="white",
                linewidth=0.6 * (draw.share > EDGED_SHARE),
            )
            if draw.share >= NAMED_SHARE:
                _name_block(axis, at + draw.share / 2, row, draw.dataset, draw.share)
            at += draw.share
        _group_shares(axis, row, stage.groups(plan.sources), order)
    labels = [f"{stage.name}\n{short(stage.tokens)} tokens\n{stage.steps:,} steps" for stage in plan.stages]
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.6)
    axis.set_xlim(0, 1)
    axis.set_xticks([x / 10 for x in range(11)], [f"{10 * x} %" for x in range(11)])
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_title("Share of each dataset in the stages' samples", fontsize=11)
    handles = [Patch(color=COLOURS[group], label=group) for group in COLOURS if group in groups]
    picture.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    save(picture, path)


def _name_block(axis: Any, x: float, row: int, name: str, share: float) -> None:
    """Level where the name fits, else upright. A name that is too long keeps its end, which tells it from its neighbours."""
    if len(name) <= LETTERS_ACROSS * share:
        axis.text(x, row, f"{name}\n{percent(share)}", ha="center", va="center", fontsize=7.5, color="white")
        return
    text = name if len(name) <= LETTERS_UPRIGHT else f"…{name[1 - LETTERS_UPRIGHT :]}"
    axis.text(x, row, text, ha="center", va="center", fontsize=6, color="white", rotation=90)


def _group_shares(axis: Any, row: int, shares: dict[str, float], order: list[str]) -> None:
    at = 0.0
    for group in sorted(shares, key=order.index):
        if shares[group] >= 0.02:
            label = f"{group} {percent(shares[group])}" if shares[group] >= 0.07 else percent(shares[group])
            axis.text(at + shares[group] / 2, row - 0.34, label, ha="center", va="bottom", fontsize=8, color=COLOURS[group])
        at += shares[group]


def draw_document_lengths(path: Path, datasets: dict[str, Lengths]) -> None:
    """Shares of documents and of tokens by document length, a line a dataset; the smallest ones are one line together."""
    import numpy as np
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 7), layout="constrained")
    axes = picture.subplots(2, 1, sharex=True)
    shown = _largest(datasets)
    # Two bins a doubling: finer ones are empty for short documents, whose lengths are whole numbers.
    coarse = np.unique(np.concatenate([[0], np.round(2 ** (np.arange(0, 81) / 2))])).astype(np.int64)
    group = np.searchsorted(coarse, EDGES, side="right") - 1
    top = max((lengths.longest or 1 for lengths in shown.values()), default=1)
    for number, (name, lengths) in enumerate(shown.items()):
        for axis, counts in zip(axes, (lengths.documents, lengths.tokens), strict=True):
            shares = np.bincount(group, weights=counts, minlength=len(coarse)) / max(1, counts.sum())
            colour = f"C{number}" if number < 10 else "0.6"
            axis.stairs(100 * shares[1:-1], coarse[1:], label=name, color=colour, linewidth=1.5)
    for axis, what in zip(axes, ("documents", "tokens"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_ylabel(f"share of {what} (%)")
        axis.grid(alpha=0.25)
        for threshold in THRESHOLDS:
            axis.axvline(threshold, color="0.5", linewidth=0.8, linestyle="--")
            place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "xytext": (2, -10)}
            axis.annotate(f"{threshold // 1024}k", (threshold, 1), fontsize=8, color="0.4", **place)
    axes[0].set_xlim(1, 2 * max(top, THRESHOLDS[-1]))
    axes[1].set_xlabel("document length in tokens, two bins a doubling")
    axes[0].legend(fontsize=8, ncols=2, frameon=False)
    save(picture, path)


def draw_tokens(path: Path, datasets: dict[str, tuple[int, list[int], float | None]]) -> None:
    """A bar a dataset: its tokens on a logarithmic scale, beside how they are spread over document lengths.

    `datasets` gives tokens, tokens in documents longer than each of THRESHOLDS, and a run's epochs.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 1.6 + 0.3 * len(datasets)), layout="constrained")
    left, right = picture.subplots(1, 2, sharey=True)
    rows = range(len(datasets))
    tokens = [max(1, count) for count, _, _ in datasets.values()]
    left.barh(rows, tokens, color="#4c78a8")
    left.set_xscale("log")
    left.set_xlim(min(tokens) / 4, max(tokens) * 60)
    for row, (count, _, epochs) in enumerate(datasets.values()):
        label = short(count) + ("" if epochs is None else f", {epochs:.2f} epochs")
        left.annotate(label, (max(1, count), row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    left.set_yticks(rows, list(datasets))
    left.set_xlabel("tokens")
    sizes = ["up to 4k", "4k to 32k", "32k to 64k", "over 64k"]
    at = [0.0] * len(datasets)
    for part, (size, colour) in enumerate(zip(sizes, ("#c6dbef", "#9ecae1", "#4292c6", "#08519c"), strict=True)):
        spread = [(count, [count, *longer, 0]) for count, longer, _ in datasets.values()]
        shares = [100 * (bounds[part] - bounds[part + 1]) / max(1, count) for count, bounds in spread]
        right.barh(rows, shares, left=at, color=colour, label=size)
        at = [begin + share for begin, share in zip(at, shares, strict=True)]
    right.set_xlim(0, 100)
    right.set_xlabel("share of the tokens by the length of their document (%)")
    right.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    left.invert_yaxis()
    save(picture, path)


def _largest(datasets: dict[str, Lengths]) -> dict[str, Lengths]:
    """The datasets with the most tokens, as many as have colours, and the others as one."""
    order = sorted(datasets, key=lambda name: -int(datasets[name].tokens.sum()))
    kept = {name: datasets[name] for name in datasets if name in order[:LINES]}
    if len(order) > LINES:
        rest = kept[f"{len(order) - LINES} more"] = Lengths()
        for name in order[LINES:]:
            rest.merge(datasets[name])
    return kept
