"""The `data:` section: which token datasets a run reads, in which proportions, in which stages; and the size of its batches.

Together with each dataset's `manifest.json` this section is the dataset spec: nothing else decides what a sample is.
"""

import math

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from smol_config import Section, nearest


class StageConfig(Section):
    """A part of the run with its own mixture. Give its length in `steps` or in `tokens`."""

    name: str
    """Shown in logs and stored with every checkpoint; unique in a run."""
    steps: PositiveInt | None = None
    """Length in optimizer steps."""
    tokens: PositiveInt | None = None
    """Length in tokens, rounded up to whole steps."""
    weights: dict[str, float]
    """Share of the samples by dataset name; normalised, so the sum need not be 1. A weight of 0 leaves the dataset out."""
    keep: float | None = Field(default=None, gt=0, lt=1)
    """Share of this stage's samples that keeps the mixture of the stage before; `weights` take the rest. An annealing of 60 %
    of a candidate on 40 % of the running mixture is `{name: anneal, steps: 20000, keep: 0.4, weights: {candidate: 1}}`. The
    resolved configuration holds the weights that come of it, and no `keep`."""

    def problems(self) -> list[str]:
        found = []
        if (self.steps is None) == (self.tokens is None):
            found.append(f"steps={self.steps} and tokens={self.tokens}: give one of the two")
        if bad := {name: weight for name, weight in self.weights.items() if not (weight >= 0 and math.isfinite(weight))}:
            found.append(f"weights {bad} must be finite and not negative; a weight of 0 leaves a dataset out")
        elif not any(self.weights.values()):
            found.append(f"weights {self.weights} name no dataset with a share above 0; give at least one")
        return found


class DataConfig(Section):
    """Datasets, held-out sets and stages."""

    tokenizer: str
    """Tokenizer folder or Hub name; must be the one in the datasets' manifests."""
    sequence_length: PositiveInt
    """Tokens in a window, S: the model sees S tokens and S targets of each."""
    seed: NonNegativeInt = 0
    """Seed of the data order; independent of train.seed."""
    document_mask: bool = True
    """Attention and positions stop at document borders. False: a window is one document for attention (an ablation);
    targets that would cross a border are left out of the loss either way, so that losses compare."""
    datasets: dict[str, str]
    """Name: folder of a token dataset (shards and manifest.json)."""
    held_out: dict[str, str] = Field(default_factory=dict)
    """Name: folder of a token dataset that is only evaluated on."""
    stages: list[StageConfig] = Field(min_length=1)
    """In order; the run's length is their sum."""
    skip_samples: list[tuple[NonNegativeInt, PositiveInt]] = Field(default_factory=list)
    """Ranges [first, end) of samples never to be trained on, each widened to whole global batches: the way past a loss
    spike. Ranges that lie behind a resumed run's position must stay as they were."""

    @field_validator("stages")
    @classmethod
    def _mix(cls, stages: list[StageConfig]) -> list[StageConfig]:
        """Stages with `keep` get their full weights, so that every later reader sees plain weights."""
        if stages[0].keep is not None:
            raise ValueError(f"stage {stages[0].name!r} is the first and has no mixture before it to keep; remove keep")
        mixed = stages[:1]
        for stage in stages[1:]:
            mixed.append(_after(mixed[-1], stage))
        return mixed

    def problems(self) -> list[str]:
        found = []
        for index, stage in enumerate(self.stages):
            for name in stage.weights:
                if name not in self.datasets:
                    found.append(f"stages.{index}.weights: {name!r} is not in data.datasets; {nearest(name, self.datasets)}")
        names = [stage.name for stage in self.stages]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            found.append(f"stages: names {repeated} stand more than once; give every stage its own name")
        if bad := [span for span in self.skip_samples if span[0] >= span[1]]:
            found.append(f"skip_samples: {bad} are not ranges [first, end) with first < end")
        return found


class RampConfig(Section):
    """A stretch of steps, from where the one before it ended, with a smaller global batch."""

    until_step: PositiveInt
    """Steps [.., until_step) of the run take this batch; the first step is 0."""
    global_batch_size: PositiveInt
    """Windows in one optimizer step, over all ranks."""


class BatchConfig(Section):
    """How many windows each step takes: the part of the `train:` section that the data order depends on."""

    global_batch_size: PositiveInt
    """Windows in one optimizer step, over all ranks."""
    batch_ramp: list[RampConfig] = Field(default_factory=list)
    """Batch-size warm-up, in order: smaller batches before `global_batch_size`, each until a step. A resumed run may change
    what lies ahead of it."""

    @property
    def batch_sizes(self) -> list[tuple[int, int]]:
        """(first step, windows in a step) of each stretch of steps, from step 0 on."""
        firsts = [0, *(piece.until_step for piece in self.batch_ramp)]
        sizes = [*(piece.global_batch_size for piece in self.batch_ramp), self.global_batch_size]
        return list(zip(firsts, sizes, strict=True))

    def problems(self) -> list[str]:
        firsts, sizes = zip(*self.batch_sizes, strict=True)
        found = []
        if sorted(set(firsts)) != list(firsts):
            found.append(f"batch_ramp: until_step={list(firsts[1:])} must rise from one to the next")
        if sorted(set(sizes)) != list(sizes):
            found.append(
                f"batch_ramp: global_batch_size={list(sizes[:-1])} must rise from one to the next and stay below "
                f"global_batch_size={sizes[-1]}"
            )
        return found


def _after(before: StageConfig, stage: StageConfig) -> StageConfig:
    """`stage` with its `keep`, if it has one, worked into its weights, which then sum to 1."""
    if stage.keep is None or stage.problems() or before.problems():
        return stage  # the problems are reported with the rest of the section
    shares = {name: stage.keep * weight / sum(before.weights.values()) for name, weight in before.weights.items() if weight}
    for name, weight in stage.weights.items():
        shares[name] = shares.get(name, 0.0) + (1 - stage.keep) * weight / sum(stage.weights.values())
    return stage.model_copy(update={"weights": shares, "keep": None})
