"""Which folders `merge` adds up and with which weights: from the command line, or from a YAML file."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, FiniteFloat

from conversion import ConversionError
from smol_config import Section, load, parse

TOLERANCE = 1e-6
"""How far from 1 the sum of the weights may be."""


class Part(Section):
    """One summand: a model, or several that are averaged first (a soup)."""

    folders: tuple[Path, ...] = Field(min_length=1)
    """Hugging Face folders; several share the weight equally."""
    weight: FiniteFloat
    """What the folder, or the average of the folders, is multiplied by; all weights sum to 1."""


class Recipe(Section):
    """A linear merge: the weighted sum of its models."""

    models: tuple[Part, ...] = Field(min_length=1)
    """The summands, in the order in which they are added; configuration and tokenizer are those of the first folder."""

    def problems(self) -> list[str]:
        """The weights' sum, folders given twice, a merge of one."""
        folders = [str(folder) for part in self.models for folder in part.folders]
        found = [f"models: {folder} is given more than once; give it once, with all its weight" for folder in _twice(folders)]
        if len(folders) < 2:
            found.append(f"models: {folders[0]} is the only folder; a merge needs two or more")
        total = math.fsum(part.weight for part in self.models)
        if abs(total - 1) > TOLERANCE:
            found.append(f"models: the weights sum to {total:.9g}, not to 1 (within {TOLERANCE}); divide each by their sum")
        return found


class Share(NamedTuple):
    """One folder and what its tensors are multiplied by."""

    folder: Path
    weight: float


def from_arguments(models: Sequence[str]) -> Recipe:
    """The recipe of `--models FOLDER=WEIGHT ...`; raises ConversionError or ConfigError for what is not one."""
    parts = []
    for text in models:
        folder, _, weight = text.rpartition("=")
        try:
            parts.append({"folders": [folder], "weight": float(weight)})
        except ValueError:
            folder = ""
        if not folder:
            raise ConversionError(f"--models {text}: not a folder and its weight; write FOLDER=WEIGHT, such as runs/a/hf=0.9")
    return parse(Recipe, {"models": parts}, source="--models")


def from_file(path: Path) -> Recipe:
    """The recipe in a YAML file; raises ConfigError for what is not one."""
    return load(Recipe, path)


def shares(recipe: Recipe) -> list[Share]:
    """Every folder with its weight in the sum: that of its part, divided by the folders that share it."""
    return [Share(folder, part.weight / len(part.folders)) for part in recipe.models for folder in part.folders]


def _twice(folders: Sequence[str]) -> list[str]:
    return sorted({folder for folder in folders if folders.count(folder) > 1})
