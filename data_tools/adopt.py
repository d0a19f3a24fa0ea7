"""`manifest`: adopts a folder of tokens that other tools wrote, by checking all of it and writing its manifest.json.

    datatrove's DocumentTokenizer, DocumentTokenizerMerger     X.ds, X.ds.index, X.ds.metadata   --manifest-->  smol_data
    Megatron's preprocess_data, MegatronDocumentTokenizer      X.bin, X.idx                      --/

Nothing is guessed: the type of the ids comes from `.ds.metadata` (first line: tokenizer|bytes per id) or from the `.idx`
header, the counts from the indexes, the vocabulary and the EOS id from the tokenizer that is named. Then every byte is
checked as `verify` does, since with a wrong type or tokenizer every id would still be some id. No file is changed.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_tools.shard_checks import index_name
from data_tools.tokenizer_file import TokenizerFile, open_tokenizer
from data_tools.verify import check_files
from smol_config import UserError
from smol_console import add_command, whole_number
from smol_data.files import IDX_DTYPE_CODES, IDX_HEADER, IDX_MAGIC
from smol_data.manifest import MANIFEST_NAME, FileEntry, Manifest, TokenizerIdentity

Dtype = Literal["uint16", "uint32"]
_MEGATRON_NAMES = {1: "uint8", 2: "int8", 3: "int16", 5: "int64", 6: "float64", 7: "float32"}
_SHOWN = 5  # faults in the error's text


@dataclass(frozen=True)
class _Found:
    """A folder's files, their counts taken from the indexes and their hashes not yet known."""

    dtype: Dtype
    files: list[FileEntry]


def add_parser(subparsers: Any) -> None:
    """Add `manifest` to the command line."""
    parser = add_command(
        subparsers,
        "manifest",
        "Adopt a folder of tokens that datatrove's or Megatron's own tools wrote: check it whole, then write manifest.json.",
        "python -m data_tools manifest runs/megatron/code --tokenizer runs/tokenizer",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of *.ds with *.ds.index, or of *.bin with *.idx")
    parser.add_argument(
        "--tokenizer", required=True, metavar="T", help="that made the ids: folder with tokenizer.json, or Hub name"
    )
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument(
        "--eos-id", type=whole_number(0), metavar="N", help="last id of every document (default: the tokenizer's EOS)"
    )
    ends.add_argument("--no-eos", action="store_true", help="documents end without EOS; only the index tells them apart")
    parser.add_argument(
        "--window-tokens",
        type=whole_number(2),
        metavar="C",
        help="the set was shuffled in chunks of C tokens (datatrove's shuffle_chunk_size); trains with sequence length C - 1",
    )
    parser.add_argument("--workers", type=whole_number(1), metavar="N", help="processes (default: cores)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; raises UserError, having written nothing, when the folder is not what it is said to be."""
    folder: Path = options.folder
    if (folder / MANIFEST_NAME).exists():
        raise UserError(f"{folder} has a {MANIFEST_NAME} already; check it with `python -m data_tools verify {folder}`")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name one that holds *.ds or *.bin files")
    if not os.access(folder, os.W_OK):  # before hours of hashing
        raise UserError(f"{folder} cannot be written to; ask for the right, or copy it where {MANIFEST_NAME} can be written")
    tokenizer = open_tokenizer(options.tokenizer)
    eos_id = None if options.no_eos else tokenizer.eos_id if options.eos_id is None else options.eos_id
    manifest = adopt(folder, tokenizer, eos_id, options.window_tokens, options.workers or os.cpu_count() or 1)
    try:
        manifest.write(folder)
    except OSError as error:
        raise UserError(
            f"{folder / MANIFEST_NAME} cannot be written ({error.strerror}); check rights and free space"
        ) from error
    ends = "no EOS" if eos_id is None else f"EOS {eos_id}"
    counts = f"{manifest.documents:,} documents, {manifest.tokens:,} tokens"
    print(f"{counts} ({manifest.dtype}, {ends}), {len(manifest.shards)} shards")
    print(f"written: {folder / MANIFEST_NAME}")


def adopt(folder: Path, tokenizer: TokenizerFile, eos_id: int | None, window_tokens: int | None, workers: int) -> Manifest:
    """The manifest of a folder without one, every byte checked; raises UserError with the faults found. Writes nothing."""
    found = _find_datatrove(folder, tokenizer) if _names(folder, ".ds") else _find_megatron(folder)
    manifest = Manifest(
        tokenizer=TokenizerIdentity(name=tokenizer.name, sha256=tokenizer.sha256),
        vocab_size=tokenizer.vocab_size,
        dtype=found.dtype,
        eos_id=eos_id,
        window_tokens=window_tokens,
        tokens=sum(entry.tokens or 0 for entry in found.files),
        documents=sum(entry.documents or 0 for entry in found.files),
        files=found.files,
    )
    if not manifest.tokens:
        raise UserError(f"{folder}: its {len(manifest.shards)} shards hold no token; name another folder")
    verdict = check_files(folder, manifest, workers)
    if verdict.faults:
        more = f"; and {len(verdict.faults) - _SHOWN} more" if len(verdict.faults) > _SHOWN else ""
        raise UserError(f"{folder} cannot be adopted: {'; '.join(verdict.faults[:_SHOWN])}{more}; {_remedy(verdict.faults)}")
    files = [entry.model_copy(update={"sha256": verdict.sha256[entry.name]}) for entry in manifest.files]
    return manifest.model_copy(update={"files": files, "eos_ends_documents": eos_id is not None and not verdict.eos_inside})


def _remedy(faults: list[str]) -> str:
    """What to try, by what was found."""
    text = " ".join(faults)
    if "not with EOS" in text:
        return "give --eos-id or --no-eos if the documents end otherwise, --window-tokens if they were shuffled in chunks"
    if "vocab_size" in text:
        return "name with --tokenizer the one that made these ids"
    if "window_tokens" in text:
        return "give --window-tokens the size the chunks have, or leave it out"
    return "copy or tokenise it again"


def _names(folder: Path, ending: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(ending) and path.is_file())


def _entry(path: Path, **counts: int) -> FileEntry:
    return FileEntry(name=path.name, bytes=path.stat().st_size, sha256="", **counts)


# --- datatrove ---------------------------------------------------------------------------------------------------------


def _find_datatrove(folder: Path, tokenizer: TokenizerFile) -> _Found:
    """The `.ds` files and what belongs to them; tokens of the size that all `.ds.metadata` agree on."""
    if others := _names(folder, ".bin"):
        raise UserError(f"{folder} holds *.ds and {others[0]}; two formats make no one dataset: keep one of them there")
    size = _token_size(folder, tokenizer)
    files = []
    for name in _names(folder, ".ds"):
        index = folder / index_name(name)
        if not index.is_file():
            raise UserError(f"{folder / name} has no {index.name}; write it with save_index=True, or remove a half-made file")
        for path, item in ((folder / name, size), (index, 8)):
            if path.stat().st_size % item:
                raise UserError(f"{path} has {path.stat().st_size} bytes, not a multiple of {item}; copy it again")
        counts = {"tokens": (folder / name).stat().st_size // size, "documents": index.stat().st_size // 8}
        files.append(_entry(folder / name, **counts))
    files += [_entry(path) for path in folder.iterdir() if ".ds." in path.name and path.is_file()]
    return _Found("uint16" if size == 2 else "uint32", sorted(files, key=lambda entry: entry.name))


def _token_size(folder: Path, tokenizer: TokenizerFile) -> int:
    """Bytes per id: a merged set has one metadata file for all shards, others have one each."""
    sizes: dict[int, str] = {}
    for name in _names(folder, ".ds.metadata"):
        maker, _, size = (folder / name).read_text(encoding="utf8").partition("\n")[0].rpartition("|")
        if size not in ("2", "4"):
            raise UserError(f"{folder / name}: its first line does not end with |2 or |4, the bytes per id; write it so")
        if maker.startswith("sha256:") and maker != f"sha256:{tokenizer.sha256}":
            raise UserError(
                f"{folder / name}: made by a tokenizer with {maker}, but --tokenizer {tokenizer.name} has "
                f"sha256:{tokenizer.sha256}; name the one that made the ids"
            )
        sizes[int(size)] = name
    if not sizes:
        raise UserError(
            f"{folder} has no *.ds.metadata, which tells the bytes per id; write a text file all.ds.metadata there whose first "
            "line is TOKENIZER|2 for uint16 or TOKENIZER|4 for uint32"
        )
    if len(sizes) > 1:
        raise UserError(f"{folder}: ids of 2 bytes by {sizes[2]}, of 4 bytes by {sizes[4]}; put them into folders of their own")
    return next(iter(sizes))


# --- Megatron ----------------------------------------------------------------------------------------------------------


def _find_megatron(folder: Path) -> _Found:
    """The `.bin` files with their `.idx`, all of one type."""
    names = _names(folder, ".bin")
    if not names:
        raise UserError(f"{folder} holds no *.ds and no *.bin file; name a folder of token shards")
    dtypes: dict[Dtype, str] = {}
    files = []
    for name in names:
        index = folder / index_name(name)
        if not index.is_file():
            raise UserError(f"{folder / name} has no {index.name}; copy it too, or write it again with Megatron's tools")
        dtype, sequences = _read_header(index)
        dtypes[dtype] = name
        size = 2 if dtype == "uint16" else 4
        files += [_entry(folder / name, tokens=(folder / name).stat().st_size // size, documents=sequences), _entry(index)]
    if len(dtypes) > 1:
        raise UserError(
            f"{folder}: {dtypes['uint16']} has ids of 2 bytes, {dtypes['uint32']} of 4; put them into folders of their own"
        )
    return _Found(next(iter(dtypes)), sorted(files, key=lambda entry: entry.name))


def _read_header(index: Path) -> tuple[Dtype, int]:
    """Type of the ids and number of sequences."""
    with index.open("rb") as file:
        data = file.read(IDX_HEADER)
    version, code = int.from_bytes(data[9:17], "little"), data[17] if len(data) == IDX_HEADER else 0
    if not data.startswith(IDX_MAGIC) or version != 1 or not code:
        raise UserError(
            f"{index} does not begin like a Megatron index of version 1; copy it again or write it with Megatron's tools"
        )
    sequences, indices = (int.from_bytes(data[at : at + 8], "little") for at in (18, 26))
    for dtype in ("uint16", "uint32"):
        if code == IDX_DTYPE_CODES[dtype]:
            if indices != sequences + 1:
                raise UserError(
                    f"{index} has {sequences} sequences in {indices - 1} documents, but one sequence a document is needed; run "
                    "Megatron's preprocessing without --split-sentences"
                )
            return dtype, sequences
    name = _MEGATRON_NAMES.get(code, "unknown")
    raise UserError(
        f"{index}: its ids are of type {name} (code {code}); only uint16 (8) and int32 (4) are read: write it again"
    )
