"""`verify`: a checkpoint and a Hugging Face folder hold the same weights and compute the same logits. Also to-hf's last step.

1. Every tensor of the folder equals the checkpoint's, bit for bit, after the weight table and the rounding to the folder's
   dtype. That finds what logits on a few thousand tokens cannot, such as a damaged row of an untied embedding.
2. Both networks, built by Megatron-Core and by transformers, agree on the logits. That finds what step 1 cannot: a wrong
   table, a wrong configuration.

Both sides compute in fp32 with the folder's weights (the checkpoint's are rounded to the folder's dtype first), so a bf16
export is held to the same tolerance as an fp32 one. Models that are too large to be held are streamed (networks.py).
"""

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion import ConversionError, ParityError, tokenizer_files
from conversion.families import yarn_factor_of
from conversion.megatron_reader import MegatronReader
from conversion.networks import MegatronNetwork, TransformersNetwork
from conversion.parity import (
    FIXED_TEXT,
    QUICK_WINDOW,
    WINDOW,
    Row,
    compare,
    compare_greedy,
    fixed_rows,
    text_rows,
)
from conversion.safetensors_files import DTYPES, SafetensorsReader, check_folder
from conversion.weights import same_bits, weight_table
from smol_console import shown
from smol_model.config import ModelConfig
from smol_train.checkpoint_folder import read_model_config, read_run_mapping
from smol_train.checkpoint_integrity import find
from smol_train.parallel import ParallelConfig, process_groups

_BLOCK_BYTES = 64 * 2**20
"""Of a tensor, read from a folder at a time."""
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Form:
    """How thorough a comparison is, and how much memory it may take."""

    window: int
    """Tokens of a row, at most."""
    greedy: bool
    """Whether greedy continuations are compared too."""
    memory: int
    """Where both models in fp32 take more bytes, they are streamed."""
    nan_is_equal: bool = False
    """Whether NaN on both sides is agreement: of a broken model that is converted all the same."""


QUICK = Form(QUICK_WINDOW, greedy=False, memory=400 * 10**6)
"""Of to-hf: a quarter of a thousand positions, and with all libraries less than a gigabyte beside the largest tensor."""
FULL = Form(WINDOW, greedy=True, memory=8 * 10**9)
"""Of verify."""


def verify(folder: Path, hf_dir: Path, text: Path | None, form: Form) -> dict[str, Any]:
    """Compare whole checkpoint `folder` with `hf_dir`; returns the contents of parity.json, passed or not.

    Raises ConversionError when one of them cannot be read or their tensors do not even have the same names and shapes.
    """
    model = read_model_config(folder)
    length = sequence_length_of(folder)
    window = max(2, min(length, form.window))
    tokenizer = tokenizer_files.load(tokenizer_files.locate(str(hf_dir)), model.vocab_size)
    fixed, users = _fixed_ids(tokenizer, hf_dir), _users_ids(tokenizer, text) if text else []
    dtype = SafetensorsReader(hf_dir).dtype
    unequal = unequal_tensors(folder, hf_dir, model)
    print(f"weights compared: {len(unequal)} tensors differ", flush=True)
    factor = yarn_factor_of(json.loads((hf_dir / "config.json").read_text(encoding="utf8")))
    streamed = 2 * 4 * model.parameters > form.memory
    print(f"computing the logits of both{', a matrix at a time' if streamed else ''}", flush=True)
    with process_groups(ParallelConfig(), seed=0):
        ours = MegatronNetwork.load(folder, model, length, dtype, factor, streamed)
        theirs = TransformersNetwork.load(hf_dir, streamed)
        rows = fixed_rows(fixed, model.vocab_size, window), text_rows(users, window)
        figures = compare(ours, theirs, *rows, nan_is_equal=form.nan_is_equal)
        if form.greedy:
            print("continuing texts greedily with both", flush=True)
            figures["greedy"] = compare_greedy(ours, theirs, _prompts(fixed, window))
    if unequal:
        reason = f"{len(unequal)} tensors differ from the checkpoint's, the first of them {unequal[0]}"
        figures["reason"] = f"{reason}; {figures['reason']}" if figures["reason"] else reason
        figures["passed"] = False
    return {
        **figures,
        "unequal_tensors": unequal,
        "dtype": _DTYPE_NAMES.get(dtype, str(dtype)),
        "checkpoint": str(folder),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "megatron-core", "transformers", "safetensors")
        },
    }


def write_parity(path: Path, figures: dict[str, Any]) -> None:
    """Write parity.json."""
    path.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf8")


def raise_unless_passed(figures: dict[str, Any], written: Path) -> None:
    """Raise ParityError with the reason when the comparison failed; `written` is where parity.json is."""
    if not figures["passed"]:
        raise ParityError(f"parity failed: {figures['reason']}; the figures are in {written}")


def table(figures: dict[str, Any]) -> str:
    """The figures that matter, for a terminal."""
    rows = [
        ("weights", f"{len(figures['unequal_tensors'])} tensors differ ({figures['dtype']})"),
        ("largest logit difference", f"{figures['max_logit_difference']} (tolerance {figures['tolerance']})"),
        ("same likeliest token", f"{figures['top1_agreement']:.6f} of {figures['positions']} positions"),
    ]
    if greedy := figures.get("greedy"):
        rows.append(("greedy continuation", f"{greedy['agreed']} of {greedy['tokens']} tokens"))
    for name, title in (("perplexity", "perplexity, fixed text"), ("text_perplexity", "perplexity, your text")):
        if both := figures.get(name):
            rows.append((title, f"{both['megatron']} (Megatron-Core), {both['hf']} (transformers)"))
    title = "parity passed" if figures["passed"] else "parity failed"
    return "\n".join([title, *(f"  {name:<26}{value}" for name, value in rows)])


def sequence_length_of(folder: Path) -> int:
    """data.sequence_length of a checkpoint's stored configuration, in tokens."""
    data = read_run_mapping(folder).get("data") or {}
    length = data.get("sequence_length")
    if not isinstance(length, int) or length < 1:
        raise ConversionError(f"{folder / 'run.yaml'}: data.sequence_length is {length!r}; it must be a number of tokens")
    return length


def unequal_tensors(folder: Path, hf_dir: Path, model: ModelConfig) -> list[str]:
    """Names of the Hugging Face tensors that are not the checkpoint's, rounded to their dtype; one in memory at a time."""
    ours, theirs = MegatronReader(folder, model), SafetensorsReader(hf_dir)
    check_folder(theirs, model, str(hf_dir))
    dtype = theirs.dtype
    unequal = []
    for weight in shown(weight_table(model), "comparing weights", "tensors"):
        for name, tensor in weight.split(ours.read(weight.megatron).to(dtype), model).items():
            if not _is_stored(tensor, theirs, name):
                unequal.append(name)
    return unequal


def _is_stored(tensor: Tensor, weights: SafetensorsReader, name: str) -> bool:
    """Whether `tensor` is tensor `name` of the folder, of which some rows are in memory at a time."""
    rows = max(1, _BLOCK_BYTES // (tensor[0].nbytes or 1))
    blocks = [slice(begin, begin + rows) for begin in range(0, len(tensor), rows)]
    return all(same_bits(tensor[block], weights.read(name, block)) for block in blocks)


def _fixed_ids(tokenizer: Any, hf_dir: Path) -> Sequence[int]:
    ids: Sequence[int] = tokenizer(FIXED_TEXT, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise ConversionError(f"the tokenizer in {hf_dir} makes {len(ids)} ids of the fixed text; it cannot be the model's")
    return ids


def _users_ids(tokenizer: Any, text: Path) -> Sequence[int]:
    try:
        content = text.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"--text {text} cannot be read as UTF-8 text ({error}); give a text file") from error
    ids: Sequence[int] = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise ConversionError(f"--text {text} has fewer than two tokens; give a longer text")
    return ids


def _prompts(fixed: Sequence[int], window: int) -> list[Row]:
    """Beginnings of three parts of the fixed text."""
    length = max(1, min(window // 2, len(fixed) // 4))
    begins = [part * (len(fixed) - length) // 3 for part in range(3)]
    return [Row(torch.tensor(fixed[begin : begin + length]), (length,)) for begin in begins]


def run(checkpoint_path: Path, hf_dir: Path, text: Path | None, output: Path | None, memory: int) -> None:
    """The command: verify, write parity.json, raise ParityError when the two differ."""
    folder = find(checkpoint_path)
    if not (hf_dir / "config.json").is_file():
        raise ConversionError(f"{hf_dir} is not a Hugging Face folder: it has no config.json; give one that to-hf wrote")
    output = output or hf_dir / "parity.json"
    figures = verify(folder, hf_dir, text, replace(FULL, memory=memory))
    write_parity(output, figures)
    print(table(figures))
    print(f"wrote {output}")
    raise_unless_passed(figures, output)
