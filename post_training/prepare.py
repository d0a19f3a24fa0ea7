"""Samples ready to train on, as Arrow files: what every trainer starts with. The last step of preparation, and its contract.

    prepared = prepare(config, output_dir / "data")          # once; later calls with the same configuration open what is there

    config.data.kind   columns of prepared.train and prepared.held_out (datasets.Dataset, memory-mapped)
    tokens             input_ids, labels (-100: not trained); with data.packing seq_lengths, the lengths of a row's samples
    preference         prompt_ids, chosen_ids, rejected_ids: the answers end with the stop token
    prompts            prompt (messages, the mode in the system message), mode, dataset, and the source's `keep` as text

What the trainers tell TRL, so that it trains on exactly this:

    SFTTrainer      packing=data.packing, packing_strategy="bfd", max_length=data.max_length, shuffle_dataset=False,
                    dataset_kwargs={"skip_prepare_dataset": True}
    DPOTrainer      a subclass whose _prepare_dataset returns the dataset as it is; KTO the same, after unpairing the answers
    GRPOTrainer     shuffle_dataset=False, chat_template_kwargs={"today_date": data.today}
    all             processing_class=prepared.tokenizer, which carries the chat template and is saved with the model

FOLDER/train.arrow, held_out.arrow    Arrow streams         FOLDER/manifest.json    settings, sources, counts, shares, warnings
One process prepares and the others wait for it: prepare() on rank 0 first, then everywhere.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.output import whole_folder
from post_training import checks
from post_training.checks import Finding
from post_training.config import PreparationConfig, Source
from post_training.mixing import Mixed, mix
from post_training.mixture import pack
from post_training.sources import FoundSource, find
from post_training.template import load_tokenizer
from smol_config import UserError

MANIFEST = "manifest.json"
ROWS_AT_A_TIME = 64
"""Written to the Arrow file together."""


@dataclass(frozen=True)
class Prepared:
    """What a trainer trains on."""

    tokenizer: Any
    """transformers' tokenizer with the chat template set."""
    train: Any
    """datasets.Dataset"""
    held_out: Any | None
    manifest: dict[str, Any]


class Refused(UserError):
    """The data or the template would train nothing, or something else than meant."""


def prepare(config: PreparationConfig, folder: Path) -> Prepared:
    """Prepare `config.data` into `folder`, or open it where that was done with the same settings and files.

    Raises UserError for what cannot be read, for a folder that was prepared otherwise, and Refused with all findings that
    refuse training; then nothing is written. Warnings go to stderr and into the manifest.
    """
    tokenizer = load_tokenizer(config.model, config.data.template)
    found = [find(source) for source in config.data.sources]
    held_out = [find(source) for source in config.data.held_out]
    settings = _settings(config, tokenizer, found, held_out)
    if not (folder / MANIFEST).is_file():
        _refuse(checks.template_findings(tokenizer, config.data))
        with whole_folder(folder) as working:
            _write(config, found, held_out, settings, working)
    return _open(folder, tokenizer, settings)


def _settings(
    config: PreparationConfig, tokenizer: Any, found: Sequence[FoundSource], held_out: Sequence[FoundSource]
) -> dict[str, Any]:
    """All that the result depends on. The number of workers and the places of files are not among it."""
    no_paths: Any = {"__all__": {"path"}}
    data = config.data.model_dump(mode="json", exclude={"workers": True, "sources": no_paths, "held_out": no_paths})
    words = json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.eos_token])
    return data | {
        "tokenizer_sha256": hashlib.sha256(words.encode()).hexdigest(),
        "files": [one.identity for one in [*found, *held_out]],
    }


def _open(folder: Path, tokenizer: Any, settings: dict[str, Any]) -> Prepared:
    from datasets import Dataset

    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf8"))
    if differing := sorted(key for key in settings if settings[key] != manifest["settings"].get(key)):
        raise UserError(
            f"{folder} was prepared with other settings ({', '.join(differing)}); put them back, or remove the folder to "
            "prepare anew"
        )
    parts = [folder / name for name in ("train.arrow", "held_out.arrow")]
    train, held_out = (Dataset.from_file(str(part)) if part.is_file() else None for part in parts)
    return Prepared(tokenizer, train, held_out, manifest)


def _write(
    config: PreparationConfig, found: list[FoundSource], held_out: list[FoundSource], settings: dict[str, Any], folder: Path
) -> None:
    findings: list[Finding] = []
    manifest: dict[str, Any] = {"settings": settings, "model": config.model}
    with tempfile.TemporaryDirectory(dir=folder) as spools:
        mixtures = mixtures_of(config, found, held_out, Path(spools))
        findings += findings_of(mixtures)
        _refuse(findings)
        for part, mixed in mixtures.items():
            manifest[part] = summary(mixed) | {"rows": write_arrow(config, mixed, folder / f"{part}.arrow")}
    manifest |= {"sources": [source.model_dump(mode="json") for source in [*config.data.sources, *config.data.held_out]]}
    manifest |= {"warnings": [finding.text for finding in findings]}
    manifest |= {"versions": {name: version(name) for name in ("transformers", "tokenizers", "pyarrow", "numpy")}}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
    if findings:
        print(checks.text_of(findings), file=sys.stderr)


def mixtures_of(
    config: PreparationConfig, found: list[FoundSource], held_out: list[FoundSource], spools: Path, limit: int | None = None
) -> dict[str, Mixed]:
    """Scan and draw: `train`, and `held_out` where there are such sources."""
    mixtures = {}
    for part, sources in (("train", found), ("held_out", held_out)):
        if sources:
            (spools / part).mkdir()
            mixtures[part] = mix(config, sources, spools / part, limit)
    return mixtures


def findings_of(mixtures: dict[str, Mixed]) -> list[Finding]:
    """All findings about data."""
    findings = [*checks.data_findings(mixtures["train"], "sources")]
    if "held_out" in mixtures:
        findings += [
            *checks.data_findings(mixtures["held_out"], "held_out"),
            *checks.leaks(mixtures["train"], mixtures["held_out"]),
        ]
    return findings


def summary(mixed: Mixed) -> dict[str, Any]:
    """What the manifest says of a mixture."""
    return {
        "samples": len(mixed.order),
        "tokens": int((mixed.lengths * mixed.times).sum()),
        "trained_tokens": int((mixed.trained * mixed.times).sum()),
        "datasets": mixed.statistics(),
        "rows_of": {
            name: {"total": counts.total, "taken": counts.rows}
            | {group: {kind: tally.rows for kind, tally in found.items()} for group, found in counts.tallies.items()}
            for name, counts in mixed.counts.items()
        },
    }


def _refuse(findings: Sequence[Finding]) -> None:
    if refused := [finding.text for finding in findings if finding.severity == "refuse"]:
        raise Refused("the data is not fit to train on:\n  " + "\n  ".join(refused))


# --- the Arrow files ---------------------------------------------------------------------------------------------------------


def write_arrow(config: PreparationConfig, mixed: Mixed, path: Path) -> int:
    """Write what is drawn, in order; returns the number of rows. A few rows are in memory at a time."""
    import pyarrow

    rows: Any = mixed.order.reshape(-1, 1)
    if config.data.kind == "tokens" and config.data.packing:
        rows = [mixed.order[row] for row in pack(mixed.lengths[mixed.order], config.data.max_length, config.data.seed)]
    writer: Any = None
    with pyarrow.OSFile(str(path), "wb") as file:
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            batch = _batch(config, mixed, rows[start : start + ROWS_AT_A_TIME])
            writer = writer or pyarrow.ipc.new_stream(file, batch.schema)
            writer.write_batch(batch)
        writer.close()
    return len(rows)


def _batch(config: PreparationConfig, mixed: Mixed, rows: Sequence[Any]) -> Any:
    import pyarrow

    contents = mixed.read([int(sample) for row in rows for sample in row])
    if config.data.kind == "prompts":
        return pyarrow.RecordBatch.from_pylist(
            [json.loads(content) for content in contents], schema=_prompt_schema(mixed.sources)
        )
    if config.data.kind == "preference":
        fields = [pair_of(content) for content in contents]
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        columns = {name: _lists([pair[number] for pair in fields]) for number, name in enumerate(names)}
        return pyarrow.RecordBatch.from_pydict(columns)
    samples = [np.frombuffer(content, dtype=np.int32).reshape(2, -1) for content in contents]
    lengths = iter([sample.shape[1] for sample in samples])
    grouped = [np.array([next(lengths) for _ in row], dtype=np.int32) for row in rows]
    ends = np.cumsum([0, *(int(row.sum()) for row in grouped)])
    flat = np.concatenate(samples, axis=1)
    columns = {name: _list_array(flat[number], ends) for number, name in enumerate(("input_ids", "labels"))}
    return pyarrow.RecordBatch.from_pydict(columns | ({"seq_lengths": _lists(grouped)} if config.data.packing else {}))


def pair_of(content: bytes) -> list[Any]:
    numbers = np.frombuffer(content, dtype=np.int32)
    return np.split(numbers[3:], np.cumsum(numbers[:2]))


def _lists(arrays: Sequence[Any]) -> Any:
    return _list_array(np.concatenate(arrays), np.cumsum([0, *map(len, arrays)]))


def _list_array(values: Any, ends: Any) -> Any:
    import pyarrow

    return pyarrow.ListArray.from_arrays(pyarrow.array(ends, pyarrow.int32()), pyarrow.array(values, pyarrow.int32()))


def _prompt_schema(sources: Sequence[Source]) -> Any:
    """Columns of prompts; a source without one of the others' `keep` has null there."""
    import pyarrow

    text = pyarrow.string()
    kept = sorted({name for source in sources for name in source.keep})
    message = pyarrow.struct([("role", text), ("content", text)])
    return pyarrow.schema(
        [("prompt", pyarrow.list_(message)), ("mode", text), ("dataset", text), *((name, text) for name in kept)]
    )
