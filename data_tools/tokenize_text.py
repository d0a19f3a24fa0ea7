"""`tokenize`: documents to token shards with their manifest, the folder that a config's `data.datasets` names.

Third step of the flow: text -> tokenizer -> **token shards** -> smol_data -> trainer. datatrove reads, tokenises and
shuffles (datatrove_steps.py); this file checks the inputs, runs it, and checks and describes what it wrote:

    OUT_DIR/00000_00000_doc_shuffled.ds            token ids, little-endian uint16 or uint32, EOS after every document
    OUT_DIR/00000_00000_doc_shuffled.ds.index      uint64 document ends, in tokens
    OUT_DIR/00000_00000_doc_shuffled.ds.metadata   datatrove's note: tokenizer hash, bytes per id, token count
    OUT_DIR/manifest.json                          smol_data.manifest.Manifest, written last

Task r of --tasks makes one shard of the input files r, r + tasks, ...; so the tokens depend on inputs, tokenizer, seed and
--tasks, never on --workers. The tokenizer's own template (a BOS, say) is not applied: a document is its text and one EOS.
"""

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_tools.console import Progress, add_command, whole_number
from data_tools.inputs import ALL_ENDINGS, Inputs, find_inputs
from data_tools.output import check_new_folder, whole_folder
from data_tools.tokenizer_file import TokenizerFile, open_tokenizer
from smol_config import UserError
from smol_data.manifest import MANIFEST_NAME, FileEntry, Manifest, TokenizerIdentity, sha256_of_file


def add_parser(subparsers: Any) -> None:
    """Add `tokenize` to the command line."""
    parser = add_command(
        subparsers,
        "tokenize",
        "Tokenise documents into shards with a manifest; every document ends with the tokenizer's EOS token.",
        "python -m data_tools tokenize runs/corpus/code runs/tokens/code --tokenizer runs/tokenizer",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help=f"files or folders of {ALL_ENDINGS}, of one kind")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="new folder for the shards and manifest.json")
    parser.add_argument("--tokenizer", required=True, metavar="T", help="folder with a tokenizer.json, or Hub name")
    parser.add_argument("--tasks", type=whole_number(1), default=1, metavar="N", help="shards, each of whole files (default 1)")
    parser.add_argument(
        "--workers",
        type=whole_number(1),
        metavar="N",
        help="processes (default: tasks or cores, whichever is less); one task alone uses all cores while it tokenises",
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the document shuffle (default 0)")
    parser.add_argument("--text-key", default="text", metavar="KEY", help="key or column of the text (default text)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; raises UserError on unusable inputs, tokenizer or settings, or when a task fails."""
    if (options.out_dir / MANIFEST_NAME).exists():
        raise UserError(f"{options.out_dir} already holds a finished dataset ({MANIFEST_NAME}); remove it or name a new folder")
    check_new_folder(options.out_dir)
    inputs = find_inputs(options.inputs, options.text_key)
    if options.tasks > len(inputs.files):
        count = len(inputs.files)
        raise UserError(f"--tasks {options.tasks}: a shard takes whole files and there are {count}; give {count} or less")
    tokenizer = open_tokenizer(options.tokenizer)
    workers = min(options.tasks, options.workers or os.cpu_count() or 1)
    print(f"tokenising {len(inputs.files):,} files, {inputs.bytes:,} bytes, {workers} workers", file=sys.stderr)
    with whole_folder(options.out_dir) as folder:
        empty = write_shards(folder, inputs, tokenizer, options.tasks, workers, options.seed)
        manifest = describe(folder, tokenizer, options.seed)
        if not manifest.tokens:
            raise UserError(f"the inputs hold no text: all {empty} documents are empty; nothing was written")
        manifest.write(folder)
    print(f"{manifest.documents:,} documents, {manifest.tokens:,} tokens ({manifest.dtype}), {len(manifest.shards)} shards")
    if empty:
        print(f"left out: {empty:,} documents without text")
    print(f"written: {options.out_dir}")


def write_shards(folder: Path, inputs: Inputs, tokenizer: TokenizerFile, tasks: int, workers: int, seed: int) -> int:
    """Run datatrove over the inputs; returns how many documents were left out because they are empty.

    Raises UserError with the cause when a task fails.
    """
    from data_tools.datatrove_steps import EMPTY_DOCUMENTS, QuietExecutor, ShardWriter

    with tempfile.TemporaryDirectory() as notes, _watch(folder, 2 if tokenizer.dtype == "uint16" else 4):
        executor = QuietExecutor(
            pipeline=[inputs.reader(), ShardWriter(str(folder), tokenizer, seed)],
            tasks=tasks,
            workers=workers,
            logging_dir=notes,
            skip_completed=False,
        )
        try:
            statistics = executor.run()
        except (UserError, OSError):
            raise
        except Exception as error:
            cause = str(error).strip().split("\n")[0]
            raise UserError(f"tokenising failed with {type(error).__name__}: {cause}; nothing was written") from error
    for path in folder.glob("*_unshuffled.ds*"):  # what datatrove leaves behind for a task without any text
        path.unlink()
    return sum(int(step.stats[EMPTY_DOCUMENTS].total) for step in statistics.stats)


def describe(folder: Path, tokenizer: TokenizerFile, seed: int) -> Manifest:
    """The manifest of the shards in `folder`, each checked; raises UserError when one is not what it should be."""
    files = [_entry(path, tokenizer) for path in sorted(folder.iterdir())]
    return Manifest(
        tokenizer=TokenizerIdentity(name=tokenizer.name, sha256=tokenizer.sha256),
        vocab_size=tokenizer.vocab_size,
        dtype=tokenizer.dtype,
        eos_id=tokenizer.eos_id,
        seed=seed,
        tokens=sum(entry.tokens or 0 for entry in files),
        documents=sum(entry.documents or 0 for entry in files),
        files=files,
    )


def _entry(path: Path, tokenizer: TokenizerFile) -> FileEntry:
    """One file's entry. A shard is checked: as many tokens as its index says, EOS at the end of every document."""
    import numpy as np

    size, sha256 = path.stat().st_size, sha256_of_file(path)
    if path.suffix != ".ds":
        return FileEntry(name=path.name, bytes=size, sha256=sha256)
    tokens = np.memmap(path, dtype=np.dtype(tokenizer.dtype).newbyteorder("<"), mode="r")
    ends = np.fromfile(f"{path}.index", dtype="<u8").astype(np.int64)
    if ends[-1] != len(tokens) or (tokens[ends - 1] != tokenizer.eos_id).any():
        raise UserError(f"shard {path.name} and its index disagree after writing; check the disk and run the command again")
    return FileEntry(name=path.name, bytes=size, sha256=sha256, tokens=len(tokens), documents=len(ends))


@contextmanager
def _watch(folder: Path, token_size: int) -> Iterator[None]:
    """Show the tokens written so far, by the shards' sizes: the one figure that does not need to ask the workers."""
    finished = threading.Event()

    def follow() -> None:
        with Progress("tokenising", "tokens") as progress:
            # The first look comes late on purpose: datatrove forks its manager process in the first moments.
            while not finished.wait(1.0):
                progress.advance(max(0, _shard_bytes(folder) // token_size - progress.done))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _shard_bytes(folder: Path) -> int:
    """Bytes of ids written so far. A task's shard is there twice while it is shuffled: the larger file counts."""
    sizes: dict[str, int] = {}
    for path in folder.glob("*.ds"):
        task = path.name.partition("_")[0]
        with suppress(FileNotFoundError):  # the first of the two is removed at some moment
            sizes[task] = max(sizes.get(task, 0), path.stat().st_size)
    return sum(sizes.values())
