"""A sweep's YAML file, and what is to be trained for it: the arms of the round that is on, a run for each of their seeds.

    sweep.yaml --load_sweep--> Sweep --current_round--> Round: Arms --runs--> OUTPUT/runs/NAME-seedN --trainer.py--> trained

    OUTPUT/runs/NAME-seedN        a run's folder; config.yaml is all that it was started with
    OUTPUT/promoted/K_NAME.yaml   what `--promote` wrote: the winner of round K, the baseline of the next (promote.py)
    OUTPUT, or OUTPUT/K_NAME where the sweep is ordered    results.json, table.md, report.html of a round (report.py)

A sweep has one round with all its changes, or, ordered, one for each: every change is tried on the winner of the round before.
What was done is read from these folders; nothing else is kept.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt

from evaluation.ablations.kinds import PRETRAINING, RECIPES, Kind, kind_of
from smol_config import Section, UserError, load, load_mapping, mapping_to_yaml, merge_files, nearest
from smol_files import write_whole

BASELINE = "baseline"
CONFIG_NAME = "config.yaml"


class Change(Section):
    """One difference from the baseline."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    """Of the arm and in its folders: small letters, digits, points and hyphens."""
    overrides: tuple[str, ...] = Field(min_length=1)
    """Settings as the trainer's command takes them: section.key=value."""


class Seeds(Section):
    """How often each arm is trained. Without several seeds of the baseline there is no telling a change from noise."""

    baseline: tuple[NonNegativeInt, ...] = Field(default=(6, 7, 8), min_length=1)
    changes: tuple[NonNegativeInt, ...] = Field(default=(6,), min_length=1)
    settings: tuple[str, ...] = ("train.seed", "data.seed")
    """What a seed sets: the initial weights and the order of the data; of a recipe, the choice of rows too."""


class Sweep(Section):
    """A baseline and changes to it."""

    recipe: str | None = None
    """What trains the runs: mid, sft, preference, grpo (docs/post_training.md). None: pre-training."""
    baseline: Path
    """A configuration of pre-training, or of the recipe, relative to the sweep's file."""
    changes: tuple[Change, ...] = Field(min_length=1)
    ordered: bool = False
    """One change a round, on the winner of the round before, which `--promote` names."""
    output: Path
    """Folder of the runs and results."""
    seeds: Seeds = Seeds()
    suite: Path | None = None
    """Tasks that score the runs (evaluation/suites), relative to the sweep's file. None: held-out data alone, no exports."""
    suite_overrides: tuple[str, ...] = ()
    """Settings of the suite, such as data.text=FOLDER."""
    processes: PositiveInt = 1
    """Ranks of a run on this machine. With --slurm the cluster's settings say how many."""

    def problems(self) -> list[str]:
        """A recipe that is none, names and seeds that stand twice, a change that is called as the baseline."""
        names, found = [change.name for change in self.changes], []
        if self.recipe is not None and self.recipe not in RECIPES:
            hint = nearest(self.recipe, RECIPES)
            found.append(f"recipe={self.recipe} is no recipe of post-training ({hint}); leave it out for pre-training")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            found.append(f"changes: names {twice} stand more than once; give every change its own name")
        if BASELINE in names:
            found.append(f"changes: {BASELINE!r} is the baseline's name; choose another")
        for name, seeds in (("baseline", self.seeds.baseline), ("changes", self.seeds.changes)):
            if len(set(seeds)) < len(seeds):
                found.append(f"seeds.{name}: {list(seeds)} has a seed twice; the second run would be the first one again")
        return found

    @property
    def rounds(self) -> list[tuple[Change, ...]]:
        """Of changes."""
        return [(change,) for change in self.changes] if self.ordered else [self.changes]


@dataclass(frozen=True)
class Run:
    """One training run: an arm and a seed."""

    arm: str
    seed: int
    folder: Path
    mapping: dict[str, Any]
    """Its whole configuration; every ${NAME} as written, but where Kind.resolved says otherwise."""
    kind: Kind = PRETRAINING

    def check(self) -> None:
        """Raises UserError when the folder holds a run that was begun with other settings."""
        path = self.folder / CONFIG_NAME
        different = _differing(_leaves(merge_files(path)), _leaves(self.mapping)) if path.is_file() else ""
        if different:
            raise UserError(
                f"{self.folder} was begun with other settings than the sweep now has ({different}); set them back, or move "
                f"the folder away to train it anew"
            )

    def write_config(self) -> Path:
        """CONFIG_NAME in the run's folder, from which it is trained; one that is there stays."""
        path = self.folder / CONFIG_NAME
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, mapping_to_yaml(self.mapping))
        return path


@dataclass(frozen=True)
class Arm:
    """The baseline, or a change made to it."""

    name: str
    base: Path
    """The baseline's configuration."""
    overrides: tuple[str, ...]
    runs: tuple[Run, ...]
    kind: Kind = PRETRAINING


@dataclass(frozen=True)
class Round:
    """What is compared with what."""

    number: int
    """From 1."""
    baseline: Arm
    changes: tuple[Arm, ...]
    folder: Path
    """Of its results."""
    promoted: Path | None
    """The winner's configuration, once it was named."""

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The baseline first."""
        return (self.baseline, *self.changes)

    @property
    def runs(self) -> list[Run]:
        """A seed of every arm before the next seed, so that a sweep that is cut short has compared all changes."""
        longest = max(len(arm.runs) for arm in self.arms)
        return [arm.runs[at] for at in range(longest) for arm in self.arms if at < len(arm.runs)]


def load_sweep(path: Path, overrides: tuple[str, ...] = ()) -> Sweep:
    """The sweep of a file, with the paths that are relative to it resolved; raises ConfigError listing every fault."""
    sweep = load(Sweep, path, overrides)
    places = {"baseline": path.parent / sweep.baseline, "suite": sweep.suite and path.parent / sweep.suite}
    return sweep.model_copy(update=places)


def promoted_files(sweep: Sweep) -> list[Path]:
    """The winners of the rounds that were decided, in order."""
    return sorted((sweep.output / "promoted").glob("*_*.yaml"), key=lambda path: int(path.stem.partition("_")[0]))


def current_round(sweep: Sweep) -> Round:
    """The first round that was not decided, or the last one. Raises ConfigError for a configuration that does not merge."""
    rounds, promoted = sweep.rounds, promoted_files(sweep)
    number = min(len(promoted) + 1, len(rounds))
    before = promoted[number - 2] if number > 1 else None
    base = before or sweep.baseline
    name = before.stem.partition("_")[2] if before else BASELINE
    changes = rounds[number - 1]
    return Round(
        number=number,
        baseline=_arm(sweep, name, base, (), sweep.seeds.baseline),
        changes=tuple(_arm(sweep, change.name, base, change.overrides, sweep.seeds.changes) for change in changes),
        folder=sweep.output / f"{number}_{changes[0].name}" if sweep.ordered else sweep.output,
        promoted=promoted[number - 1] if len(promoted) >= number else None,
    )


def _arm(sweep: Sweep, name: str, base: Path, overrides: tuple[str, ...], seeds: tuple[int, ...]) -> Arm:
    merged, kind, runs = merge_files(base, overrides), kind_of(sweep.recipe), []
    filled = load_mapping(base, overrides, keep_unset=True)
    resolved = {setting: filled[setting] for setting in kind.resolved if setting in filled}
    for seed in seeds:
        folder = sweep.output.absolute() / "runs" / f"{name}-seed{seed}"
        own = {**dict.fromkeys(sweep.seeds.settings, seed), "train.output_dir": str(folder), **kind.own, **resolved}
        runs.append(Run(name, seed, folder, _with(merged, own), kind))
    return Arm(name, base, overrides, tuple(runs), kind)


def _with(mapping: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A copy of the mapping with settings by their dotted names."""
    changed = copy.deepcopy(mapping)
    for name, value in settings.items():
        section = changed
        *parents, last = name.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return changed


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {key: leaf for part, item in value.items() for key, leaf in _leaves(item, f"{name}.{part}").items()}
    return {name.removeprefix("."): value}


def _differing(was: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings that differ, but for where the run lies: a sweep's folder may have been moved."""
    names = [name for name in {**was, **now} if was.get(name) != now.get(name) and name != "train.output_dir"]
    return ", ".join(f"{name}: {was.get(name, 'not set')}, now {now.get(name, 'not set')}" for name in names)
