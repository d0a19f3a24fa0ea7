"""`to-hf`: checkpoint -> Hugging Face folder that transformers loads without remote code, with tokenizer, card and parity.json.

Everything is written to HF_DIR.partial, verified there, and only then renamed. When verification fails, HF_DIR stays as it
was (absent, as a rule) and HF_DIR.partial is left beside it with the reason in parity.json.
"""

import argparse
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import smol_progress
from conversion import ConversionError, tokenizer_files
from conversion.families import SpecialIds, check_yarn, family_of, to_huggingface
from conversion.megatron_reader import MegatronReader
from conversion.model_card import Exported, model_card
from conversion.safetensors_files import DTYPES, SafetensorsWriter
from conversion.training_record import Record, read_record
from conversion.verify import QUICK, Form, raise_unless_passed, sequence_length_of, table, verify, write_parity
from conversion.weights import Weight, check_finite, huggingface_shapes, weight_table
from smol_console import shown
from smol_model.config import ModelConfig
from smol_train.checkpoint_folder import read_model_config, read_run_mapping
from smol_train.checkpoint_integrity import find


@dataclass(frozen=True)
class Options:
    """How an export is made."""

    dtype: str = "bf16"
    shard_size: int = 5 * 10**9
    tokenizer: str | None = None
    text: Path | None = None
    yarn: float = 1.0
    allow_nan: bool = False
    license: str | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Options":
        """The options among a command's arguments."""
        return cls(**{field.name: getattr(arguments, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class _Export:
    """Everything that was checked before the first byte is written."""

    folder: Path
    model: ModelConfig
    sequence_length: int
    reader: MegatronReader
    tokenizer: Path
    ids: SpecialIds
    dtype: torch.dtype
    shard_bytes: int
    yarn_factor: float
    license: str | None
    end_of_turn: int | None
    record: Record


def run(checkpoint_path: Path, hf_dir: Path, options: Options, overwrite: bool = False) -> None:
    """The command. Raises ConversionError with nothing written on bad input, ParityError when the export is not equal."""
    check(options)
    _check_target(hf_dir, overwrite)
    export = _prepare(find(checkpoint_path), options)
    partial = hf_dir.with_name(hf_dir.name + ".partial")
    if partial.exists():
        print(f"removing {partial}, left by an export that did not finish")
        shutil.rmtree(partial)
    print(f"exporting {export.folder} as {family_of(export.model).architecture}, {options.dtype}, to {partial}", flush=True)
    try:
        partial.mkdir(parents=True)
        write_weights(export, partial, options.allow_nan)
        _write_texts(export, partial)
        if export.record.runs:
            smol_progress.write(partial, smol_progress.progress_of(export.folder))
    except BaseException as error:  # a damaged checkpoint, a full disk, Ctrl-C: half an export serves nobody
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise ConversionError(f"{hf_dir} was not made ({error}); make room or choose another HF_DIR") from error
        raise
    figures = verify_partial(export.folder, partial, options.text, replace(QUICK, nan_is_equal=options.allow_nan))
    _write_card(export, partial, hf_dir.name, figures)
    _rename(partial, hf_dir)
    print(f"wrote {hf_dir}")


def check(options: Options) -> None:
    """Raise ConversionError for options that suit no checkpoint."""
    if options.text is not None and not options.text.is_file():
        raise ConversionError(f"--text {options.text} is not a file; give a text file")
    if not 1 <= options.yarn < float("inf"):
        raise ConversionError(f"--yarn {options.yarn} must be 1 (off) or above, such as 2 for twice the sequence length")
    if options.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", options.license):
        raise ConversionError(
            f"--license {options.license!r} is not an identifier of the Hub; write one such as apache-2.0 or mit"
        )


def _prepare(folder: Path, options: Options) -> _Export:
    model = read_model_config(folder)
    family_of(model)
    check_yarn(model, options.yarn)
    sequence_length = sequence_length_of(folder)
    reader = MegatronReader(folder, model)
    name = options.tokenizer or (read_run_mapping(folder).get("data") or {}).get("tokenizer")
    if not name:
        raise ConversionError(f"{folder / 'run.yaml'} names no data.tokenizer; give one with --tokenizer")
    tokenizer = tokenizer_files.locate(name)
    loaded = tokenizer_files.load(tokenizer, model.vocab_size)
    return _Export(
        folder,
        model,
        sequence_length,
        reader,
        tokenizer,
        tokenizer_files.special_ids(loaded),
        DTYPES[options.dtype],
        options.shard_size,
        options.yarn,
        options.license,
        tokenizer_files.end_of_turn(loaded),
        read_record(folder),
    )


def write_weights(export: _Export, target: Path, allow_nan: bool) -> None:
    """Stream all weights into safetensors files in `target`; raises ConversionError for NaN or Inf that is not allowed."""
    table, model = weight_table(export.model), export.model

    def read(weight: Weight) -> Tensor:
        tensor = export.reader.read(weight.megatron).to(export.dtype)  # rounding makes no NaN, but may make Inf
        if not allow_nan:
            check_finite(tensor, weight.megatron, f"checkpoint {export.folder}")
        return tensor

    # While one tensor is written, a thread reads the next.
    with (
        SafetensorsWriter(target, huggingface_shapes(model), export.dtype, export.shard_bytes) as writer,
        ThreadPoolExecutor(1) as thread,
    ):
        coming = thread.submit(read, table[0])
        for number, weight in enumerate(shown(table, "writing weights", "tensors"), start=1):
            tensor = coming.result()
            if number < len(table):
                coming = thread.submit(read, table[number])
            for name, part in weight.split(tensor, model).items():
                writer.write(name, part)
    print(f"weights written: {len(writer.files)} file{'s' if len(writer.files) > 1 else ''} in {target}", flush=True)


def _write_texts(export: _Export, target: Path) -> None:
    """Configuration, generation configuration and tokenizer."""
    version = _transformers_version()
    dtype = str(export.dtype).removeprefix("torch.")
    config = to_huggingface(export.model, export.ids, export.sequence_length, dtype, export.yarn_factor)
    _write_json(target / "config.json", config | {"transformers_version": version})
    ids: dict[str, Any] = {f"{key}_token_id": value for key, value in export.ids._asdict().items() if value is not None}
    if export.end_of_turn is not None:  # either ends what is generated: a text, or an answer in a chat
        ids["eos_token_id"] = [token for token in (export.ids.eos, export.end_of_turn) if token is not None]
    _write_json(target / "generation_config.json", ids | {"transformers_version": version})
    tokenizer_files.copy(export.tokenizer, target)


def _write_card(export: _Export, target: Path, name: str, parity: dict[str, Any]) -> None:
    """README.md, last, since it tells the figures of parity.json."""
    dtype = str(export.dtype).removeprefix("torch.")
    told = Exported(export.model, family_of(export.model), export.sequence_length, export.yarn_factor, dtype, export.license)
    card = model_card(name, told, export.record, parity)
    (target / "README.md").write_text(card, encoding="utf8")


def verify_partial(folder: Path, partial: Path, text: Path | None, form: Form) -> dict[str, Any]:
    """Verify an export before it gets its name and write its parity.json, also when verification itself breaks.

    Returns the figures; raises ParityError when they do not pass.
    """
    written = partial / "parity.json"
    try:
        figures = verify(folder, partial, text, form)
    except Exception as error:
        write_parity(written, {"passed": False, "reason": f"verification did not finish: {error}"})
        print(f"the export was not verified and stays at {partial}, with the reason in parity.json", flush=True)
        raise
    write_parity(written, figures)
    print(table(figures), flush=True)
    raise_unless_passed(figures, written)
    return figures


def _check_target(hf_dir: Path, overwrite: bool) -> None:
    if not hf_dir.exists():
        return
    if not overwrite:
        raise ConversionError(f"{hf_dir} exists; choose another folder, or replace it with --overwrite")
    if not (hf_dir / "config.json").is_file():
        raise ConversionError(
            f"{hf_dir} is not an export (it has no config.json), so --overwrite does not replace it; remove it yourself"
        )


def _rename(partial: Path, hf_dir: Path) -> None:
    """Give a verified export its name; one that stood there goes last."""
    old = hf_dir.with_name(hf_dir.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    if hf_dir.exists():
        hf_dir.rename(old)
    partial.rename(hf_dir)
    if old.exists():
        shutil.rmtree(old)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf8")


def _transformers_version() -> str:
    import transformers

    return str(transformers.__version__)
