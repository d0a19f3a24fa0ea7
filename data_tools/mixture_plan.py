"""What a run's mixture comes to: shares, windows, tokens and epochs of every dataset in every stage, and what is doubtful.

Behind the `mixture` command; pure arithmetic on the configuration. The counts are the data order's own (smol_data.order), to
the window, at any length. What a dataset holds is read from its manifest where the folder is there, else from the catalogue.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from data_tools.catalogue import Catalogue
from data_tools.run_config import DataRun
from smol_data.manifest import MANIFEST_NAME, read_manifest
from smol_data.order import dataset_positions

MOST_EPOCHS = 4
"""Repeating data up to about 4 times is nearly as good as new data (Muennighoff et al. 2023, arXiv 2305.16264)."""
RARE_STEPS = 100
"""A dataset that gives less than one window in this many steps is named."""
SOME = 8  # names in a warning that can be long without harm
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Source:
    """What a dataset holds."""

    name: str
    folder: str
    group: str
    """As in the catalogue; `unknown` where it is not in one."""
    tokens: int | None
    """None where neither a manifest nor the catalogue tells."""
    tokens_from: Literal["manifest", "catalogue"] | None
    """The catalogue's figures are by its makers' tokenizers."""


@dataclass(frozen=True)
class Draw:
    """What one dataset gives to one stage."""

    dataset: str
    weight: float
    """As in the configuration."""
    share: float
    """Of the stage's samples, 0 to 1."""
    windows: int
    tokens: int
    epochs: float | None
    """Times that this stage runs through the dataset; None where its tokens are not known."""


@dataclass(frozen=True)
class StageMix:
    """One stage. Samples that are skipped count as drawn: their windows are passed over, not put off."""

    name: str
    steps: int
    tokens: int
    weight_sum: float
    draws: list[Draw]
    """In the configuration's order, datasets of weight 0 left out."""

    def groups(self, sources: dict[str, Source]) -> dict[str, float]:
        """Share of each group, 0 to 1, the largest first."""
        shares: dict[str, float] = {}
        for draw in self.draws:
            group = sources[draw.dataset].group
            shares[group] = shares.get(group, 0.0) + draw.share
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class MixturePlan:
    """A whole run's mixture."""

    sequence_length: int
    stages: list[StageMix]
    sources: dict[str, Source]
    """All of data.datasets, by name."""
    warnings: list[str]

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages)

    def drawn(self, dataset: str) -> int:
        """Tokens that a dataset gives to the whole run."""
        return sum(draw.tokens for stage in self.stages for draw in stage.draws if draw.dataset == dataset)

    def epochs(self, dataset: str) -> float | None:
        """Times that the whole run goes through a dataset; None where its tokens are not known."""
        held = self.sources[dataset].tokens
        return self.drawn(dataset) / held if held else None

    def as_json(self) -> dict[str, Any]:
        """The plan as a mapping that JSON takes."""
        datasets = [asdict(source) | {"drawn": self.drawn(n), "epochs": self.epochs(n)} for n, source in self.sources.items()]
        stages = [asdict(stage) | {"groups": stage.groups(self.sources)} for stage in self.stages]
        length = {"sequence_length": self.sequence_length, "tokens": self.tokens}
        return length | {"stages": stages, "datasets": datasets, "warnings": self.warnings}


def plan_mixture(run: DataRun, catalogue: Catalogue | None) -> MixturePlan:
    """The plan of a run's `data:` section; raises DataError on a damaged manifest or stages that cannot be resolved."""
    sources = {name: _source(name, folder, catalogue) for name, folder in run.data.datasets.items()}
    plan = MixturePlan(run.data.sequence_length, list(_stages(run, sources)), sources, [])
    return MixturePlan(plan.sequence_length, plan.stages, sources, list(_warnings(plan, catalogue)))


def _source(name: str, folder: str, catalogue: Catalogue | None) -> Source:
    entry = catalogue.get(name) if catalogue else None
    group = entry.group if entry else UNKNOWN
    if (Path(folder) / MANIFEST_NAME).is_file():
        return Source(name, folder, group, read_manifest(folder).tokens, "manifest")
    tokens = entry.tokens if entry else None
    return Source(name, folder, group, tokens, "catalogue" if tokens else None)


def _stages(run: DataRun, sources: dict[str, Source]) -> Iterator[StageMix]:
    length, segments = run.data.sequence_length, run.segments()
    before: dict[str, int] = {}
    for stage in run.data.stages:
        own = [segment for segment in segments if segment.stage == stage.name]
        after = dataset_positions(segments[: segments.index(own[-1]) + 1])
        total = sum(stage.weights.values())
        draws = []
        for name, weight in stage.weights.items():
            if weight:
                windows, held = after.get(name, 0) - before.get(name, 0), sources[name].tokens
                epochs = windows * length / held if held else None
                draws.append(Draw(name, weight, weight / total, windows, windows * length, epochs))
        trained = sum(segment.steps * segment.batch_size for segment in own)
        yield StageMix(stage.name, sum(segment.steps for segment in own), trained * length, total, draws)
        before = after


def _warnings(plan: MixturePlan, catalogue: Catalogue | None) -> Iterator[str]:
    drawn = {draw.dataset for stage in plan.stages for draw in stage.draws}
    used = [name for name in plan.sources if name in drawn]
    epochs = {name: plan.epochs(name) or 0.0 for name in used}
    if often := [f"{name} ({times:.1f})" for name, times in epochs.items() if times > MOST_EPOCHS]:
        yield (
            f"gone through more than {MOST_EPOCHS} times in the run: {', '.join(often)}; beyond {MOST_EPOCHS} epochs repeated "
            "tokens are worth little (Muennighoff et al. 2023): lower the weights or find more of their kind"
        )
    for stage in plan.stages:
        rare = [_rarity(draw, stage.steps) for draw in stage.draws if draw.windows * RARE_STEPS < stage.steps]
        if rare:
            yield f"stage {stage.name}: too small weights: {', '.join(rare)}; raise them or leave the datasets out"
    for one, other in combinations(used, 2):
        if plan.sources[one].folder == plan.sources[other].folder:
            yield (
                f"{one} and {other} are one folder: each name goes through it in an order of its own, so that windows come "
                "again early; keep one name"
            )
    if unknown := [name for name in used if catalogue and catalogue.get(name) is None]:
        yield f"not in the catalogue, so of no known group or size: {', '.join(unknown)}"
    if unused := [name for name in plan.sources if name not in drawn]:
        more = f" and {len(unused) - SOME} more" if len(unused) > SOME else ""
        yield f"in no stage: {', '.join(unused[:SOME])}{more}"


def _rarity(draw: Draw, steps: int) -> str:
    often = f"one window in {steps / draw.windows:,.0f} steps" if draw.windows else "not a single window"
    return f"{draw.dataset} {draw.weight:g} ({often})"
