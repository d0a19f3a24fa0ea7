"""`inspect`: what is in a checkpoint or a Hugging Face folder, or how two of them differ.

    PATH         metadata, and of every tensor shape, dtype, norm, mean, standard deviation, largest value, NaN and Inf
    PATH PATH    metadata that differs, tensors on one side only, and how far each tensor is from the other's

A checkpoint and a folder are compared as Hugging Face tensors, the checkpoint's rounded to the folder's dtype. Memory is one
tensor of each side. `--json` holds what collect() and compare() return; where a number is not finite, it holds null.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conversion import ConversionError, inspect_text
from conversion.inspect_numbers import difference, stats
from conversion.inspect_sources import Source, architecture, as_huggingface, open_source
from smol_console import shown
from smol_train.sections.run import Verify


def run(path: Path, other: Path | None, each_tensor: bool, shapes_only: bool, output: Path | None) -> None:
    """The command. `output` is where the JSON goes, `-` for stdout in place of the text.

    Raises ConversionError or CheckpointError for a path that is neither a checkpoint nor a folder, or that is damaged.
    """
    verify: Verify = "sizes" if shapes_only else "hashes"
    if other is None:
        contents = collect(open_source(path, verify), shapes_only)
        lines = inspect_text.contents(contents, each_tensor)
    else:
        contents = compare(open_source(path, verify), open_source(other, verify), shapes_only)
        lines = inspect_text.differences(contents, each_tensor)
    if output:
        _write(output, json.dumps(_finite(contents), indent=2, default=str) + "\n")
    if output != Path("-"):
        print("\n".join(lines))


def collect(source: Source, shapes_only: bool) -> dict[str, Any]:
    """All that `inspect PATH` knows: path, kind, bytes, parameters, tensors by name, and the source's metadata.

    A tensor has shape and dtype, and unless `shapes_only`, norm, mean, std, absmax, nan and inf; `not_finite` counts the NaN
    and Inf of all.
    """
    tensors: dict[str, dict[str, Any]] = {
        name: {"shape": list(entry.shape), "dtype": entry.dtype} for name, entry in source.tensors.items()
    }
    contents = {
        "path": str(source.path),
        "kind": source.kind,
        "bytes": source.bytes,
        "parameters": sum(math.prod(entry.shape) for entry in source.tensors.values()),
        **source.metadata,
        "tensors": tensors,
    }
    if not shapes_only:
        for name in shown(list(tensors), "reading", "tensors"):
            tensors[name] |= stats(source.read(name)).as_json()
        contents["not_finite"] = sum(tensor["nan"] + tensor["inf"] for tensor in tensors.values())
    return contents


def compare(a: Source, b: Source, shapes_only: bool) -> dict[str, Any]:
    """All that `inspect A B` knows: paths, kinds, `metadata` [a's, b's] by key where they differ, `only_in_a`, `only_in_b`,
    `tensors` of both by name, and `equal`: whether all tensors are, bit for bit (None: they may be, values were not read).

    A tensor has its dtypes, its shapes, and where those are one and unless `shapes_only`, equal, max_difference,
    relative_difference ||a - b|| / ||a|| and not_finite.
    """
    metadata = _metadata(a, b)
    if a.kind != b.kind:
        a, b = (as_huggingface(side, of.tensors) if side.kind == "checkpoint" else side for side, of in ((a, b), (b, a)))
    first, second = (b, a) if b.kind == "checkpoint" else (a, b)  # read in a checkpoint's order, each of its tensors once
    only = [[name for name in x.tensors if name not in y.tensors] for x, y in ((a, b), (b, a))]
    tensors: dict[str, dict[str, Any]] = {}
    equal = not any(only)
    for name in shown([name for name in first.tensors if name in second.tensors], "comparing", "tensors"):
        ours, theirs = a.tensors[name], b.tensors[name]
        tensors[name] = {"shapes": [list(ours.shape), list(theirs.shape)], "dtypes": [ours.dtype, theirs.dtype]}
        if ours.shape == theirs.shape and not shapes_only:
            tensors[name] |= difference(a.read(name), b.read(name)).as_json()
        equal &= ours == theirs and tensors[name].get("equal", True)
    return {
        "paths": [str(a.path), str(b.path)],
        "kinds": [a.kind, b.kind],
        "metadata": metadata,
        "only_in_a": only[0],
        "only_in_b": only[1],
        "tensors": tensors,
        "equal": None if equal and shapes_only else equal,
    }


def _metadata(a: Source, b: Source) -> dict[str, list[Any]]:
    """What differs, by dotted key; None where a key is on one side only."""
    if a.kind != b.kind:
        sides = [architecture(side) for side in (a, b)]
    else:
        keys = ("state", "run") if a.kind == "checkpoint" else ("config", "generation_config")
        sides = [_flat({key: side.metadata[key] for key in keys}) for side in (a, b)]
    ours, theirs = sides
    return {key: [ours.get(key), theirs.get(key)] for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping's leaves by dotted key."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {key: leaf for name in value for key, leaf in _flat(value[name], f"{prefix}.{name}".lstrip(".")).items()}


def _finite(value: Any) -> Any:
    """Without NaN and Inf, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(output: Path, text: str) -> None:
    if output == Path("-"):
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf8")
    except OSError as error:
        raise ConversionError(f"--json {output} cannot be written ({error.strerror}); give another file") from error
