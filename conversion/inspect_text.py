"""What `inspect` prints: a few lines of metadata, a table of tensors or of kinds of tensors over the layers, and a verdict.

A kind is a tensor's name with N in place of the layer's number. NaN and Inf stand out: `!!` before the row, and last of all.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from humanize import naturalsize

from smol_console import table

Tensors = Mapping[str, Mapping[str, Any]]

LONGEST = 60
"""Characters of a metadata value that are shown; --json has it whole."""
NAMED = 6
"""Tensors that are named one by one in a sentence."""


# --- one path --------------------------------------------------------------------------------------------------------------


def contents(found: Mapping[str, Any], each_tensor: bool) -> list[str]:
    """The lines of `inspect PATH`, of what collect() returned."""
    tensors = found["tensors"]
    kind = "checkpoint" if found["kind"] == "checkpoint" else "Hugging Face folder"
    dtypes = ", ".join(sorted({tensor["dtype"] for tensor in tensors.values()}))
    lines = [f"{found['path']}: {kind}, {found['parameters']:,} parameters in {dtypes}, {naturalsize(found['bytes'])}"]
    about = _about_checkpoint(found) if found["kind"] == "checkpoint" else _about_folder(found)
    lines += [f"  {title:<13} {text}" for title, text in about.items()]
    lines += ["", *_statistics(tensors, each_tensor), ""]
    if "not_finite" not in found:
        return [*lines, f"{len(tensors)} tensors; their values were not read"]
    bad = {name: tensor for name, tensor in tensors.items() if tensor["nan"] or tensor["inf"]}
    if not bad:
        return [*lines, f"{len(tensors)} tensors, all values are finite"]
    named = _few([f"{name} ({tensor['nan']:,} NaN, {tensor['inf']:,} Inf)" for name, tensor in bad.items()])
    return [*lines, f"!! NOT FINITE: {found['not_finite']:,} values in {len(bad)} of {len(tensors)} tensors: {named}"]


def _about_checkpoint(found: Mapping[str, Any]) -> dict[str, str]:
    state, run = found["state"], found["run"]
    backend = f" on the {state['backend']} backend" if state["backend"] else ""
    about = {
        "trained": f"{state['step']:,} steps, {state['tokens']:,} tokens, next sample {state['samples']:,}",
        "saved": f"{state['reason'] or 'no reason given'}; {_pairs(state['versions'])}",
        "layout": f"{_pairs(state['layout'])}{backend}" or "not stored",
        "optimizer": state["optimizer"] or "none: weights only",
        "model": _pairs(run.get("model", {})),
        **_about_data(state["data"]),
    }
    if state["skips"]:
        ranges = ", ".join(f"{first:,} to {end - 1:,}" for first, end in state["skips"])
        about["passed over"] = f"samples {ranges}, in rollbacks"
    return about


def _about_data(data: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprint of the data consumed; nothing for weights that no trainer saved."""
    if not data:
        return {}
    stages = [f"{s['stage']} to step {s['first_step'] + s['steps']:,}" for s in data["history"]]
    samples = ", ".join(f"{name} {count:,}" for name, count in data["positions"].items())
    manifests = ", ".join(f"{name} {digest[:12]}" for name, digest in data["manifests"].items())
    return {
        "data": f"seed {data['seed']}, {data['sequence_length']:,} tokens a window, order version {data['order_version']}",
        "stages": ", ".join(stages) or "none yet",
        "samples": samples or "none yet",
        "manifests": manifests,
    }


def _about_folder(found: Mapping[str, Any]) -> dict[str, str]:
    config = found["config"]
    names = [name for name in _CONFIG if config.get(name) is not None]
    about = {
        "architecture": f"{', '.join(config.get('architectures') or ['unnamed'])} (model_type {config.get('model_type')})",
        "config": _pairs({name: config[name] for name in names}),
        "parity": _parity(found["parity"]),
        "files": ", ".join(f"{name} {naturalsize(size)}" for name, size in found["files"].items()),
    }
    if isinstance(found["merge"], dict):
        about["merged of"] = ", ".join(f"{model['weight']:g} x {model['name']}" for model in found["merge"].get("models", []))
    return about


_CONFIG = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
)
"""What is shown of config.json; --json has all of it."""


def _parity(parity: Any) -> str:
    if parity is None:
        return "no parity.json: not known to be equal to a checkpoint"
    if not isinstance(parity, dict) or "passed" not in parity:
        return f"parity.json is damaged ({_short(parity)})"
    if not parity["passed"]:
        return f"!! FAILED: {parity.get('reason')}"
    return f"passed, with {parity.get('checkpoint')}; logits differ by up to {parity.get('max_logit_difference')}"


def _statistics(tensors: Tensors, each_tensor: bool) -> list[str]:
    """The table of `inspect PATH`."""
    measured = any("norm" in tensor for tensor in tensors.values())
    header = ["tensor" if each_tensor else "kind", "tensors", "shape", "dtype"]
    header += ["norm", "mean", "std", "absmax", "NaN", "Inf"] if measured else []
    rows = []
    for name, group in _groups(tensors, each_tensor).items():
        row = [name, f"{len(group)}", *(_one_or_several(tensor[key] for tensor in group) for key in ("shape", "dtype"))]
        rows.append([*row, *_measures(group)] if measured else row)
    return _table(header, rows, each_tensor, lambda row: measured and row[-2:] != ["0", "0"])


def _measures(group: Sequence[Mapping[str, Any]]) -> list[str]:
    """Norms from the smallest to the largest of a kind, mean and deviation of all its elements, the largest, how many are
    not finite."""
    counts = [math.prod(tensor["shape"]) - tensor["nan"] - tensor["inf"] for tensor in group]
    total = max(sum(counts), 1)
    mean = sum(count * tensor["mean"] for count, tensor in zip(counts, group, strict=True)) / total
    squares = sum(tensor["norm"] ** 2 for tensor in group) / total
    norms = [tensor["norm"] for tensor in group]
    return [
        " to ".join(dict.fromkeys(f"{norm:.4g}" for norm in (min(norms), max(norms)))),
        f"{mean:.3g}",
        f"{math.sqrt(max(squares - mean**2, 0.0)):.3g}",
        f"{max(tensor['absmax'] for tensor in group):.3g}",
        f"{sum(tensor['nan'] for tensor in group):,}",
        f"{sum(tensor['inf'] for tensor in group):,}",
    ]


# --- two paths -------------------------------------------------------------------------------------------------------------


def differences(found: Mapping[str, Any], each_tensor: bool) -> list[str]:
    """The lines of `inspect A B`, of what compare() returned; the last says whether all tensors are equal."""
    tensors = found["tensors"]
    lines = [f"{side}  {path}" for side, path in zip("AB", found["paths"], strict=True)]
    if found["metadata"]:
        rows = [[key, *map(_short, values)] for key, values in found["metadata"].items()]
        lines += ["", table(["metadata", "A", "B"], rows, left=3)]
    lines += ["", *_apart(tensors, each_tensor)] if tensors else []
    missing = {"A": found["only_in_a"], "B": found["only_in_b"]}
    lines += ["", *(f"only in {side}: {_few(names)}" for side, names in missing.items() if names)]
    unequal = [name for name, tensor in tensors.items() if not _same(tensor)]
    not_finite = [name for name in tensors if tensors[name].get("not_finite")]
    if not_finite:
        lines.append(f"!! NOT FINITE: NaN or Inf in {_few(not_finite)}")
    return [*lines, _verdict(found, unequal)]


def _verdict(found: Mapping[str, Any], unequal: Sequence[str]) -> str:
    count = len(found["tensors"])
    alone = len(found["only_in_a"]) + len(found["only_in_b"])
    rounded = " after the checkpoint's were rounded to the folder's dtype" if len(set(found["kinds"])) == 2 else ""
    if found["equal"]:
        return f"EQUAL: all {count} tensors are the same, bit for bit{rounded}"
    if found["equal"] is None:
        return f"{count} tensors agree in name, shape and dtype; their values were not read"
    parts = [f"{len(unequal)} of {count} tensors in both are not equal{rounded}"] if unequal else []
    parts += [f"{alone} are on one side only"] if alone else []
    return f"DIFFERENT: {'; '.join(parts)}"


def _same(tensor: Mapping[str, Any]) -> bool:
    (ours, theirs), (our_dtype, their_dtype) = tensor["shapes"], tensor["dtypes"]
    return ours == theirs and our_dtype == their_dtype and bool(tensor.get("equal", True))


def _apart(tensors: Tensors, each_tensor: bool) -> list[str]:
    """The table of `inspect A B`."""
    measured = any("equal" in tensor for tensor in tensors.values())
    header = ["tensor" if each_tensor else "kind", "tensors", "equal" if measured else "alike", "shape", "dtype"]
    header += ["max |a - b|", "||a - b|| / ||a||", "NaN or Inf"] if measured else []
    rows = []
    for name, group in _groups(tensors, each_tensor).items():
        row = [name, f"{len(group)}", f"{sum(map(_same, group))}"]
        row += [_one_or_several(_both(tensor[key]) for tensor in group) for key in ("shapes", "dtypes")]
        rows.append([*row, *_worst(group)] if measured else row)
    return _table(header, rows, each_tensor, lambda row: measured and row[-1] != "0")


def _worst(group: Sequence[Mapping[str, Any]]) -> list[str]:
    """The largest differences among those tensors of a kind that have the same shape on both sides."""
    read = [tensor for tensor in group if "equal" in tensor]
    if not read:
        return ["-", "-", "0"]
    largest = max(tensor["max_difference"] for tensor in read)
    relative = max(tensor["relative_difference"] for tensor in read)
    return [f"{largest:.3g}", f"{relative:.3g}", f"{sum(tensor['not_finite'] for tensor in read):,}"]


def _both(values: Sequence[Any]) -> Any:
    """One value where both sides have it, else both."""
    ours, theirs = values
    return ours if ours == theirs else f"{_short(ours)} / {_short(theirs)}"


# --- both ------------------------------------------------------------------------------------------------------------------


def _groups(tensors: Tensors, each_tensor: bool) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(name if each_tensor else re.sub(r"\.layers\.\d+\.", ".layers.N.", name), []).append(tensor)
    return groups


def _table(header: list[str], rows: list[list[str]], each_tensor: bool, loud: Callable[[list[str]], bool]) -> list[str]:
    """The rows with `!!` before those that are loud, and without the number of tensors where each has its row."""
    marked = [["!!" if loud(row) else "", *row] for row in rows]
    columns = [["", *header], *marked]
    if each_tensor:
        columns = [row[:2] + row[3:] for row in columns]
    if not any(row[0] for row in columns):
        columns = [row[1:] for row in columns]
    left = 1 + bool(any(row[0] == "!!" for row in marked))
    return table(columns[0], columns[1:], left=left).splitlines()


def _one_or_several(values: Iterable[Any]) -> str:
    found = list(dict.fromkeys(map(_short, values)))
    return found[0] if len(found) == 1 else f"{len(found)} kinds"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
