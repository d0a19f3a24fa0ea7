"""`merge`: the weighted sum of Hugging Face folders of one architecture, tensor by tensor: linear merges and soups.

    merged = round(w_1 * x_1 + w_2 * x_2 + ..)      in fp32, added in the order given, rounded once to the folders' dtype

Other methods are mergekit's (merge_mergekit.py); all else is the same for them.
Everything is written to OUT_DIR.partial and renamed at the end. Nothing is loaded as a model: at any time memory holds the
fp32 sum of one tensor and one summand. Configuration and tokenizer are the first folder's; merge.json says what went in.
"""

import importlib.metadata
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion import ConversionError, merge_mergekit, tokenizer_files
from conversion.from_hf import read_config
from conversion.merge_recipe import Input, MergekitRecipe, Recipe, inputs
from conversion.model_card import Merged, merge_card
from conversion.safetensors_files import SafetensorsReader, SafetensorsWriter, check_tied_head
from conversion.training_record import hub_name
from conversion.weights import is_finite
from smol_console import shown
from smol_train.checkpoint_integrity import sha256

SHARD_BYTES = 5 * 10**9
"""Largest weight file, as in to-hf."""
HARMLESS = (
    "_name_or_path",
    "transformers_version",
    "dtype",  # the weight files' own dtypes are compared
    "torch_dtype",
    "use_cache",
    "bos_token_id",  # how text is begun, ended and padded: base and instruct models of one architecture differ here
    "eos_token_id",
    "pad_token_id",
)
"""Keys of config.json that may differ, since the logits do not depend on them; the first folder's values are kept."""


def run(out_dir: Path, recipe: Recipe | MergekitRecipe) -> None:
    """The command. Raises ConversionError, leaving no OUT_DIR, for folders that do not fit each other or a merge with NaN."""
    program = merge_mergekit.find_program(recipe) if isinstance(recipe, MergekitRecipe) else None
    models = inputs(recipe)
    partial = _check_target(out_dir, models)
    weights = [SafetensorsReader(model.folder) for model in models]
    _check_weights(models, weights)
    _check_configs(models)
    _check_heads(models, weights)
    _check_vocabularies(models)
    if partial.exists():
        print(f"removing {partial}, left by a merge that did not finish")
        shutil.rmtree(partial)
    try:
        partial.mkdir(parents=True)
        if program and isinstance(recipe, MergekitRecipe):
            merge_mergekit.write_weights(program, recipe, weights[0], partial)
        else:
            _write_weights(models, weights, partial)
        _write_texts(recipe, weights, partial, out_dir.name, program)
        partial.rename(out_dir)
    except BaseException as error:  # half a merge serves nobody
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise ConversionError(f"{out_dir} was not made ({error}); make room or choose another OUT_DIR") from error
        raise
    print(f"wrote {out_dir}")


# --- checks, before the first byte is written ----------------------------------------------------------------------------


def _check_target(out_dir: Path, models: Sequence[Input]) -> Path:
    """The folder to write to until the end."""
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise ConversionError(f"{out_dir} exists and is not an empty folder; choose another OUT_DIR")
    partial = out_dir.with_name(out_dir.name + ".partial")
    if partial.resolve() in [model.folder.resolve() for model in models]:
        raise ConversionError(f"{partial}, where the merge would be written, is one of the models; choose another OUT_DIR")
    return partial


def _check_weights(models: Sequence[Input], weights: Sequence[SafetensorsReader]) -> None:
    """The same tensor names, shapes and dtype everywhere."""
    first, shapes, dtype = models[0].folder, weights[0].shapes, weights[0].dtype
    for (folder, _), reader in zip(models[1:], weights[1:], strict=True):
        others = reader.shapes
        for name in sorted(shapes | others):
            if shapes.get(name) != others.get(name):
                ours, theirs = (f"is {list(s[name])} in" if name in s else "is not in" for s in (shapes, others))
                raise ConversionError(f"{name} {ours} {first} and {theirs} {folder}; merge models of one architecture")
        if reader.dtype != dtype:
            ours, theirs = (str(dtype).removeprefix("torch.") for dtype in (dtype, reader.dtype))
            raise ConversionError(
                f"{first} is stored in {ours} and {folder} in {theirs}; save one of them again in the other's"
            )


def _check_configs(models: Sequence[Input]) -> None:
    """One config.json but for what the logits do not depend on, of which the user is told."""
    first = models[0].folder
    config = read_config(first)
    if missing := [key for key in ("model_type", "vocab_size") if key not in config]:
        raise ConversionError(f"{first / 'config.json'} lacks {', '.join(missing)}; give the folders of language models")
    for folder, _ in models[1:]:
        other = read_config(folder)
        for key in sorted(config.keys() | other.keys()):
            ours, theirs = config.get(key), other.get(key)  # a key that is absent is one that is null
            if ours == theirs:
                continue
            if key not in HARMLESS:
                raise ConversionError(
                    f"config.json: {key} is {json.dumps(ours)} in {first} and {json.dumps(theirs)} in {folder}; merge models "
                    f"that compute alike, or mend the file that is wrong"
                )
            if key.endswith("_token_id"):
                print(f"note: {key} is {ours} in {first} and {theirs} in {folder}; {ours} is kept")


def _check_heads(models: Sequence[Input], weights: Sequence[SafetensorsReader]) -> None:
    """A tied head that lies there once more is the embedding: transformers drops it, another engine might compute with it."""
    if read_config(models[0].folder).get("tie_word_embeddings", True):  # transformers before 5 left out what was true
        for (folder, _), reader in zip(models, weights, strict=True):
            check_tied_head(reader, str(folder))


def _check_vocabularies(models: Sequence[Input]) -> None:
    """Every tokenizer gives every token the same id: rows of the embeddings are added up."""
    size = int(read_config(models[0].folder)["vocab_size"])
    first: dict[str, int] = {}
    for folder, _ in models:
        if not tokenizer_files.files(folder):
            raise ConversionError(f"{folder} holds no tokenizer files; put those that its model was trained with there")
        words = tokenizer_files.load(folder, size, remedy="put the one that its model was trained with there").get_vocab()
        first = first or words
        if differing := {word for word in first.keys() | words.keys() if first.get(word) != words.get(word)}:
            word = min(differing)
            raise ConversionError(
                f"the vocabulary of {folder} is not that of {models[0].folder} (token {word!r} has id {words.get(word)} "
                f"there and {first.get(word)} here); merge models of one tokenizer"
            )


# --- writing -------------------------------------------------------------------------------------------------------------


def _write_weights(models: Sequence[Input], weights: Sequence[SafetensorsReader], target: Path) -> None:
    shapes, dtype = weights[0].shapes, weights[0].dtype
    with SafetensorsWriter(target, shapes, dtype, SHARD_BYTES) as writer:
        for name in shown(list(shapes), "merging", "tensors"):
            merged = weighted_sum(
                (model.parameters["weight"], reader.read(name)) for model, reader in zip(models, weights, strict=True)
            )
            merged = merged.to(dtype)
            if not is_finite(merged):
                raise ConversionError(_why_not_finite(name, models, weights, dtype))
            writer.write(name, merged)


def weighted_sum(terms: Iterator[tuple[float, Tensor]]) -> Tensor:
    """The sum of weight * tensor over (weight, tensor) pairs, in fp32, in their order. Holds one term at a time."""
    # A copy: a tensor that is fp32 already shares its memory with the file.
    return reduce(Tensor.add_, (tensor.to(torch.float32, copy=True).mul_(weight) for weight, tensor in terms))


def _why_not_finite(name: str, models: Sequence[Input], weights: Sequence[SafetensorsReader], dtype: torch.dtype) -> str:
    bad = [str(model.folder) for model, reader in zip(models, weights, strict=True) if not is_finite(reader.read(name))]
    if bad:
        return f"{name} holds NaN or Inf in {', '.join(bad)}; leave that model out"
    kind = str(dtype).removeprefix("torch.")
    return f"{name}: the weighted sum is larger than {kind} holds, though every model's is finite; use smaller weights"


def _write_texts(
    recipe: Recipe | MergekitRecipe, weights: Sequence[SafetensorsReader], target: Path, name: str, program: Path | None
) -> None:
    """Configuration and tokenizer of the first folder, merge.json, model card."""
    models = inputs(recipe)
    first = models[0].folder
    for file_name in ("config.json", "generation_config.json"):
        if (first / file_name).is_file():
            shutil.copyfile(first / file_name, target / file_name)
    tokenizer_files.copy(first, target)
    manifest = {**_how(recipe, weights[0].dtype, program), "models": _told(models, weights)}
    (target / "merge.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf8")
    rows = [Merged(_name(model.folder), hub_name(model.folder), _parameters(model)) for model in models]
    card = merge_card(name, str(read_config(first)["model_type"]), _sentence(recipe), rows)
    (target / "README.md").write_text(card, encoding="utf8")


def _how(recipe: Recipe | MergekitRecipe, dtype: torch.dtype, program: Path | None) -> dict[str, Any]:
    """merge.json without the models."""
    versions = {package: importlib.metadata.version(package) for package in ("torch", "safetensors", "transformers")}
    stored = {"dtype": str(dtype).removeprefix("torch."), "versions": versions}
    if isinstance(recipe, Recipe):
        return {"method": recipe.method, "sum": "float32, in this order", **stored}
    if program:
        stored["versions"] = {**versions, "mergekit": merge_mergekit.version(program)}
    return {"method": recipe.method, "t": recipe.t, "seed": recipe.seed, **stored}


def _told(models: Sequence[Input], weights: Sequence[SafetensorsReader]) -> list[dict[str, Any]]:
    """What merge.json says of each model."""
    files = [(reader, path) for reader in weights for path in reader.files]
    hashes: dict[SafetensorsReader, dict[str, str]] = {reader: {} for reader in weights}
    for reader, path in shown(files, "hashing", "files"):
        hashes[reader][path.name] = sha256(path)
    return [
        {"name": _name(model.folder), "folder": str(model.folder), **model.parameters, "sha256": hashes[reader]}
        for model, reader in zip(models, weights, strict=True)
    ]


def _sentence(recipe: Recipe | MergekitRecipe) -> str:
    """The method, for the card."""
    if isinstance(recipe, Recipe):
        return "A linear merge: every tensor is the weighted sum of the models' tensors, added in fp32 and rounded once."
    if recipe.method == "slerp":
        return (
            f"A merge by mergekit's slerp, in fp32: tensors on the arc from the first model to the second, at t = {recipe.t:g}."
        )
    return f"A merge by mergekit's {recipe.method}, in fp32: differences from the first model, weighted and added to it."


def _parameters(model: Input) -> str:
    """A model's parameters in the card's table."""
    if list(model.parameters) == ["weight"]:
        return f"{model.parameters['weight']:.9g}"
    return ", ".join(f"{name} {value:.9g}" for name, value in model.parameters.items())


def _name(folder: Path) -> str:
    """What a model is called: its repository where the folder lies in the Hub's cache, else the end of the folder's path."""
    return hub_name(folder) or "/".join(folder.resolve().parts[-2:])
