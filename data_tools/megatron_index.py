"""`megatron-index`: a view of a token dataset that Megatron-Core's own IndexedDataset and GPTDataset read, without a copy.

    DIR/X.ds         <--symlink--  OUT_DIR/X.bin      the tokens, as they are
    DIR/X.ds.index   --written-->  OUT_DIR/X.idx      20 bytes a document (layout in smol_data/files.py)

For runs with Megatron's own loader beside ours, and for comparing the two. uint16 is Megatron's code 8; uint32 is read as
int32, code 4, which is the same bytes for ids below 2**31. Memory: some blocks of the index.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_tools.output import check_new_folder, whole_folder
from smol_config import UserError
from smol_console import Progress, add_command
from smol_data.files import IDX_DTYPE_CODES, IDX_MAGIC, TokenFiles
from smol_data.manifest import FileEntry, read_manifest
from smol_data.open_files import OpenFiles

_BLOCK = 1 << 20  # documents at a time


def add_parser(subparsers: Any) -> None:
    """Add `megatron-index` to the command line."""
    parser = add_command(
        subparsers,
        "megatron-index",
        "Make a folder that Megatron-Core's own datasets read: links to the token files, an .idx for each; copies no tokens.",
        "python -m data_tools megatron-index runs/tokens/code runs/megatron/code",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="token dataset folder of *.ds files")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="new folder for X.bin (links to X.ds) and X.idx")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; raises UserError for a folder that is not of `.ds` files, or that Megatron could not read."""
    folder: Path = options.folder
    out_dir = check_new_folder(options.out_dir)
    manifest = read_manifest(folder)
    if any(shard.name.endswith(".bin") for shard in manifest.shards):
        raise UserError(f"{folder} is in Megatron's format already; Megatron reads it as it is")
    opened = OpenFiles()
    files = TokenFiles(folder, manifest, opened)
    files.check_sizes()
    try:
        with whole_folder(out_dir) as working, Progress("writing", "documents", total=manifest.documents) as progress:
            for number, shard in enumerate(files.shards):
                stem = shard.name.removesuffix(".ds")
                (working / f"{stem}.bin").symlink_to(os.path.relpath((folder / shard.name).resolve(), out_dir))
                with (working / f"{stem}.idx").open("wb") as file:
                    write_idx(file, files, number, shard, progress)
    finally:
        opened.close()
    print("prefixes, for Megatron's --data-path:")
    for shard in files.shards:
        print(f"  {out_dir / shard.name.removesuffix('.ds')}")


def write_idx(file: BinaryIO, files: TokenFiles, number: int, shard: FileEntry, progress: Progress) -> None:
    """Write the `.idx` of shard `number`: header, lengths, byte offsets, document index; the ends are read twice, in blocks.

    Raises UserError for a document of 2**31 tokens or more, whose length Megatron cannot hold.
    """
    count, item = shard.documents or 0, files.dtype.itemsize
    file.write(IDX_MAGIC + (1).to_bytes(8, "little") + bytes([IDX_DTYPE_CODES[files.manifest.dtype]]))
    file.write(count.to_bytes(8, "little") + (count + 1).to_bytes(8, "little"))
    for starts, ends in _blocks(files, number, count):
        if (ends - starts).max() >= 2**31:
            raise UserError(
                f"{shard.name}: a document has {(ends - starts).max()} tokens, more than Megatron's int32 lengths hold"
            )
        file.write((ends - starts).astype("<i4").tobytes())
    for starts, _ in _blocks(files, number, count):
        file.write((starts * item).astype("<i8").tobytes())
        progress.advance(len(starts))
    for first in range(0, count + 1, _BLOCK):
        file.write(np.arange(first, min(first + _BLOCK, count + 1), dtype="<i8").tobytes())


def _blocks(files: TokenFiles, number: int, count: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Starts and ends of a shard's documents, in tokens, a block at a time."""
    previous = 0
    for first in range(0, count, _BLOCK):
        ends = files.document_ends(number, first, min(_BLOCK, count - first))
        yield np.append(previous, ends[:-1]), ends
        previous = int(ends[-1])
