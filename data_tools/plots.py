"""Pictures of a mixture and of datasets' documents, drawn without a display. Used by `mixture` and `stats`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.mixture_plan import MixturePlan
from data_tools.output import check_file
from data_tools.tables import percent, short
from smol_config import UserError

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
