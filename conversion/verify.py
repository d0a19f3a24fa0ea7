"""`verify`: a checkpoint and a Hugging Face folder hold the same weights and compute the same logits. Also to-hf's last step.

1. Every tensor of the folder equals the checkpoint's, bit for bit, after the weight table and the rounding to the folder's
   dtype. That finds what logits on a few thousand tokens cannot, such as a damaged row of an untied embedding.
2. Both networks, built by Megatron-Core and by transformers, agree on the logits. That finds what step 1 cannot: a wrong
   table, a wrong configuration.

Both sides compute in fp32 with the folder's weights (the checkpoint's are rounded to the folder's dtype first), so a bf16
export is held to the same tolerance as an fp32 one.
"""

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from conversion import ConversionError, ParityError, tokenizer_files
from conversion.families import yarn_factor_of
from conversion.megatron_reader import MegatronReader
from conversion.parity import FIXED_TEXT, Forward, Row, Side, compare, fixed_rows, measure, text_rows
from conversion.safetensors_files import DTYPES, SafetensorsReader, check_folder
from conversion.weights import weight_table
from smol_model.config import ModelConfig
from smol_model.spec import build_model, transformer_config
from smol_train import checkpoint
from smol_train.checkpoint_folder import read_model_config, read_run_mapping
from smol_train.checkpoint_integrity import find
from smol_train.parallel import ParallelConfig, process_groups

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def verify(folder: Path, hf_dir: Path, text: Path | None) -> dict[str, Any]:
    """Compare whole checkpoint `folder` with `hf_dir`; returns the contents of parity.json, passed or not.

    Raises ConversionError when one of them cannot be read or their tensors do not even have the same names and shapes.
    """
    model = read_model_config(folder)
    sequence_length = sequence_length_of(folder)
    rows, users = _inputs(hf_dir, model, sequence_length, text)
    dtype = SafetensorsReader(hf_dir).dtype
    unequal = unequal_tensors(folder, hf_dir, model)
    print(f"weights compared: {len(unequal)} tensors differ", flush=True)
    factor = yarn_factor_of(json.loads((hf_dir / "config.json").read_text(encoding="utf8")))
    ours = _megatron_side(folder, model, sequence_length, dtype, factor, rows, users)
    print("logits of the checkpoint computed by Megatron-Core", flush=True)
    theirs = _huggingface_side(hf_dir, rows, users)
    print("logits of the folder computed by transformers", flush=True)
    figures = compare(ours, theirs)
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


def summary(figures: dict[str, Any]) -> str:
    """One line with the figures that matter."""
    perplexity = figures["perplexity"]
    return (
        f"parity {'passed' if figures['passed'] else 'failed'}: max logit difference {figures['max_logit_difference']} "
        f"(tolerance {figures['tolerance']}), top-1 agreement {figures['top1_agreement']:.6f} on {figures['positions']} "
        f"positions, perplexity {perplexity['megatron']} (Megatron-Core) and {perplexity['hf']} (transformers)"
    )


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
    return [
        name
        for weight in weight_table(model)
        for name, tensor in weight.split(ours.read(weight.megatron).to(dtype), model).items()
        if not torch.equal(tensor, theirs.read(name))
    ]


def _inputs(hf_dir: Path, model: ModelConfig, sequence_length: int, text: Path | None) -> tuple[list[Row], list[Row]]:
    tokenizer = tokenizer_files.load(tokenizer_files.locate(str(hf_dir)), model.vocab_size)
    fixed: Sequence[int] = tokenizer(FIXED_TEXT, add_special_tokens=False, verbose=False)["input_ids"]
    if len(fixed) < 2:
        raise ConversionError(f"the tokenizer in {hf_dir} makes {len(fixed)} ids of the fixed text; it cannot be the model's")
    users: list[Row] = []
    if text is not None:
        try:
            content = text.read_text(encoding="utf8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConversionError(f"--text {text} cannot be read as UTF-8 text ({error}); give a text file") from error
        users = text_rows(tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"], sequence_length)
        if not users:
            raise ConversionError(f"--text {text} has fewer than two tokens; give a longer text")
    return fixed_rows(fixed, model.vocab_size, sequence_length), users


# --- the two networks ------------------------------------------------------------------------------------------------------


def _megatron_side(
    folder: Path,
    model: ModelConfig,
    sequence_length: int,
    dtype: torch.dtype,
    yarn_factor: float,
    rows: list[Row],
    users: list[Row],
) -> Side:
    with process_groups(ParallelConfig(), seed=0):
        config = transformer_config(model, "torch", "fp32", perform_initialization=False)
        network = build_model(model, config, "torch", sequence_length, gather_logits=True, yarn_factor=yarn_factor).eval()
        checkpoint.load_weights(folder, network)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(parameter.to(dtype))
        return measure(megatron_forward(network), rows, users)


def megatron_forward(network: torch.nn.Module) -> Forward:
    """Forward of a SmolGPT, documents packed into one row as in training."""
    device = next(network.parameters()).device

    def forward(row: Row) -> Tensor:
        if device.type == "cuda":  # variable-length attention has no fp32 kernel on CUDA: each document alone
            return torch.cat([_plain(document.to(device)[None]) for document in row.documents])
        lengths, longest = torch.tensor([0, *row.lengths]), max(row.lengths)
        borders = lengths.cumsum(0).int()
        packed = PackedSeqParams(
            qkv_format="thd", cu_seqlens_q=borders, cu_seqlens_kv=borders, max_seqlen_q=longest, max_seqlen_kv=longest
        )
        return _plain(row.ids[None], packed_seq_params=packed)

    def _plain(ids: Tensor, **options: Any) -> Tensor:
        positions = torch.arange(ids.shape[1], device=device)[None]
        logits: Tensor = network(ids, positions, None, **options)
        return logits[0]

    return forward


def _huggingface_side(hf_dir: Path, rows: list[Row], users: list[Row]) -> Side:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        network = transformers.AutoModelForCausalLM.from_pretrained(
            hf_dir, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # whatever transformers raises, the folder is not one that it loads
        raise ConversionError(f"{hf_dir} does not load with transformers ({' '.join(str(error).split())})") from error
    return measure(huggingface_forward(network.eval()), rows, users)


def huggingface_forward(network: torch.nn.Module) -> Forward:
    """Forward of a transformers model, each document alone."""

    def forward(row: Row) -> Tensor:
        return torch.cat([network(document[None], use_cache=False).logits[0] for document in row.documents])

    return forward


def run(checkpoint_path: Path, hf_dir: Path, text: Path | None, output: Path | None) -> None:
    """The command: verify, write parity.json, raise ParityError when the two differ."""
    folder = find(checkpoint_path)
    if not (hf_dir / "config.json").is_file():
        raise ConversionError(f"{hf_dir} is not a Hugging Face folder: it has no config.json; give one that to-hf wrote")
    output = output or hf_dir / "parity.json"
    figures = verify(folder, hf_dir, text)
    write_parity(output, figures)
    print(summary(figures))
    print(f"wrote {output}")
    raise_unless_passed(figures, output)
