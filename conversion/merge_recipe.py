"""What `merge` is asked for: which folders, by which method, with which weights; from the command line or from a YAML file."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import Field, FiniteFloat, NonNegativeInt

from conversion import ConversionError
from smol_config import Section, load_mapping, nearest, parse

TOLERANCE = 1e-6
"""How far from 1 the sum of the weights of a linear merge may be."""

MergekitMethod = Literal["slerp", "ties", "dare_ties", "dare_linear"]


class Part(Section):
    """One summand: a model, or several that are averaged first (a soup)."""

    folders: tuple[Path, ...] = Field(min_length=1)
    """Hugging Face folders; several share the weight equally."""
    weight: FiniteFloat
    """What the folder, or the average of the folders, is multiplied by; all weights sum to 1."""


class Recipe(Section):
    """A linear merge: the weighted sum of its models."""

    method: Literal["linear"] = "linear"
    models: tuple[Part, ...] = Field(min_length=1)
    """The summands, in the order in which they are added; configuration and tokenizer are those of the first folder."""

    def problems(self) -> list[str]:
        """The weights' sum, folders given twice, a merge of one."""
        folders = [folder for part in self.models for folder in part.folders]
        found = [f"models: {folder} is given more than once; give it once, with all its weight" for folder in _twice(folders)]
        if len(folders) < 2:
            found.append(f"models: {folders[0]} is the only folder; a merge needs two or more")
        total = math.fsum(part.weight for part in self.models)
        if abs(total - 1) > TOLERANCE:
            found.append(f"models: the weights sum to {total:.9g}, not to 1 (within {TOLERANCE}); divide each by their sum")
        return found


class Tuned(Section):
    """A model that was trained further from the base, or from what the base was trained from."""

    folder: Path
    weight: FiniteFloat | None = None
    """Of its difference from the base; ties divides by the weights' sum, so that only their ratio counts there."""
    density: float | None = Field(default=None, gt=0, le=1)
    """Share of its difference from the base that is kept: the largest elements (ties), or random ones (dare)."""


class MergekitRecipe(Section):
    """A merge that mergekit computes (merge_mergekit.py)."""

    method: MergekitMethod
    """slerp: along the arc between the base and one model. ties (Yadav et al. 2023): differences trimmed, those of the
    minority's sign left out. dare_ties, dare_linear (Yu et al. 2024): random parts of the differences dropped and the rest
    scaled up, then as ties, or added."""
    base_model: Path
    """Where slerp begins, and what the other methods take differences from; its configuration and tokenizer are the merge's."""
    models: tuple[Tuned, ...] = Field(min_length=1)
    t: float | None = Field(default=None, ge=0, le=1)
    """slerp only: how far along the arc, 0 the base, 1 the model."""
    seed: NonNegativeInt = 0
    """Of dare's random choice."""

    def problems(self) -> list[str]:
        """Parameters of another method, folders given twice."""
        folders = [self.base_model, *(model.folder for model in self.models)]
        found = [f"models: {folder} is given more than once; give each folder once" for folder in _twice(folders)]
        given = [model for model in self.models if model.weight is not None or model.density is not None]
        if self.method == "slerp":
            if self.t is None or given or len(self.models) > 1:
                found.append("method: slerp goes from the base to one model, by t; give t and one of models, its folder alone")
        elif self.t is not None or any(None in (model.weight, model.density) for model in self.models):
            found.append(f"method: {self.method} takes a weight and a density for each of models, and no t")
        return found


class Input(NamedTuple):
    """One folder that goes into a merge, and the method's parameters for it by name, such as its weight."""

    folder: Path
    parameters: dict[str, float]


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


def from_file(path: Path) -> Recipe | MergekitRecipe:
    """The recipe in a YAML file; raises ConversionError or ConfigError for what is not one."""
    mapping = load_mapping(path)
    method = mapping.get("method", "linear")
    if method == "linear":
        return parse(Recipe, mapping, source=str(path))
    known = get_args(MergekitMethod)
    if method not in known:
        raise ConversionError(f"{path}: method: {method!r} is none; {nearest(str(method), ['linear', *known])}")
    return parse(MergekitRecipe, mapping, source=str(path))


def inputs(recipe: Recipe | MergekitRecipe) -> list[Input]:
    """Every folder with what the method does with it; the first gives configuration and tokenizer."""
    if isinstance(recipe, Recipe):  # a part's weight is shared by its folders
        return [Input(folder, {"weight": part.weight / len(part.folders)}) for part in recipe.models for folder in part.folders]
    tuned = [Input(model.folder, model.model_dump(include={"weight", "density"}, exclude_none=True)) for model in recipe.models]
    return [Input(recipe.base_model, {}), *tuned]


def _twice(folders: Sequence[Path]) -> list[str]:
    return sorted(str(folder) for folder, count in Counter(folders).items() if count > 1)
