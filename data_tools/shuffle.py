"""`shuffle`: writes a token dataset anew in the order of one shuffle of its sequences, for storage where random reads are slow.

The trainer shuffles as it reads, one random read a sequence; disks and object stores that are slow at that want the order on
disk. The stream is cut into chunks of S + 1 tokens, which is a training window, and the chunks are put into one uniformly
random order over the *whole* dataset, a function of seed and epoch alone; one OUT_DIR an epoch. Document ends inside the
chunks are carried over, chunk borders become document ends, and the stream's last tokens, fewer than a chunk, are dropped.

Out of core, in two passes that read and write sequentially (chunk_runs.py): `--memory` bounds what all workers hold, and
twice the dataset's size is needed on disk while it works. A killed command, given again, goes on with what is finished.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.output import REPORT_NAME, check_new_folder, resumable_folder
from smol_config import UserError
from smol_console import Progress, add_command, byte_size, whole_number
from smol_data.files import TokenFiles
from smol_data.manifest import MANIFEST_NAME, Manifest, read_manifest
from smol_data.open_files import OpenFiles
from smol_files import write_whole

if TYPE_CHECKING:
    from data_tools.chunk_runs import Plan

_SMALL_READ = 64 << 10  # below this, slices of runs are random reads again
_BASE = 4 << 20  # of a worker's memory, for blocks that do not grow with the share


def add_parser(subparsers: Any) -> None:
    """Add `shuffle` to the command line."""
    parser = add_command(
        subparsers,
        "shuffle",
        "Write a token dataset anew with its sequences shuffled, so that training reads it in order; out of core, resumable.",
        "python -m data_tools shuffle runs/tokens/code runs/shuffled/code-epoch0 --seed 6 --sequence-length 4096 --memory 16GB",
    )
    parser.add_argument("in_dir", type=Path, metavar="IN_DIR", help="token dataset folder")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="new token dataset folder, for one epoch")
    parser.add_argument("--seed", type=whole_number(0), required=True, metavar="N", help="of the order")
    parser.add_argument("--epoch", type=whole_number(0), default=0, metavar="E", help="another order for each (default 0)")
    parser.add_argument(
        "--sequence-length",
        type=whole_number(1),
        metavar="S",
        help="chunks hold S + 1 tokens; an input of chunks keeps its own",
    )
    parser.add_argument(
        "--memory", type=byte_size, default=2 * 10**9, metavar="SIZE", help="for the data of all workers together (default 2GB)"
    )
    parser.add_argument(
        "--shard-size", type=byte_size, default=4 * 10**9, metavar="SIZE", help="of the new shards (default 4GB)"
    )
    parser.add_argument("--workers", type=whole_number(1), metavar="N", help="processes (default: cores)")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on with a killed command's parts")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; raises UserError for unusable input or settings, too little space, and content that is not the input's."""
    from data_tools.chunk_runs import Plan

    check_new_folder(options.out_dir)
    manifest, workers = _open(options.in_dir), options.workers or os.cpu_count() or 1
    width = _width(options.sequence_length, manifest, options.in_dir)
    chunks = manifest.tokens // width
    if not chunks:
        raise UserError(f"{options.in_dir} has {manifest.tokens} tokens, not one chunk of {width}; shorten --sequence-length")
    memory = options.memory // workers
    settings = {
        "source": manifest.digest,
        "seed": options.seed,
        "epoch": options.epoch,
        "window_tokens": width,
        "shard_size": options.shard_size,
        "memory_of_a_worker": memory,
    }
    run_chunks = min(chunks, _chunks_that_fit(memory, width, manifest))
    shard_chunks = max(1, options.shard_size // (width * manifest.token_dtype.itemsize))
    with resumable_folder(options.out_dir, settings, options.fresh) as working:
        plan = Plan(working, options.in_dir, manifest, options.seed, options.epoch, width, chunks, run_chunks, shard_chunks)
        _check_space(plan)
        result = _finish(plan, _make_parts(plan, workers))
        working.release()
    print(f"{chunks:,} chunks of {width} tokens in {len(result.shards)} shards, seed {options.seed}, epoch {options.epoch}")
    if left := manifest.tokens - result.tokens:
        print(f"left out: the last {left:,} tokens, fewer than a chunk")
    if any(entry.name.endswith(".flags") for entry in manifest.files):
        print("left out: the documents' flags, since chunks hold parts of documents")
    print(f"written: {options.out_dir}")


def _open(folder: Path) -> Manifest:
    """The manifest of a dataset whose files have their sizes; raises DataError."""
    manifest, opened = read_manifest(folder), OpenFiles()
    try:
        TokenFiles(folder, manifest, opened).check_sizes()
    finally:
        opened.close()
    return manifest


def _width(sequence_length: int | None, manifest: Manifest, folder: Path) -> int:
    """Tokens of a chunk."""
    if (chunk := manifest.window_tokens) is not None:
        if sequence_length not in (None, chunk - 1):
            raise UserError(
                f"--sequence-length {sequence_length}: {folder} is made of chunks of {chunk} tokens; leave the flag out, "
                "or shuffle the dataset that these chunks were cut from"
            )
        return chunk
    if sequence_length is None:
        raise UserError(
            "--sequence-length is missing: give the run's data.sequence_length; chunks of one token more are shuffled"
        )
    return sequence_length + 1


def _chunks_that_fit(memory: int, width: int, manifest: Manifest) -> int:
    """Chunks that a worker may hold: tokens, an eighth more to move them, 64 bytes of notes, 32 a document end."""
    ends = width * manifest.documents / manifest.tokens
    size = width * manifest.token_dtype.itemsize * 9 / 8 + 64 + 32 * ends
    if (fit := int((memory - _BASE) / size)) < 1:
        raise UserError(
            f"--memory leaves {memory:,} bytes a worker, too little for chunks of {size:.0f}; give more or fewer --workers"
        )
    return fit


def _check_space(plan: "Plan") -> None:
    """Raises UserError when the disk cannot hold runs and shards; says so when memory is so small that reads are, too."""
    size = plan.chunks * plan.chunk_bytes
    if not plan.working.finished():
        free = shutil.disk_usage(plan.working.root).free
        if free < 2 * size:
            raise UserError(
                f"{plan.working.target.parent} has {free:,} bytes free, but shuffling needs twice the dataset, {2 * size:,}; "
                "free some or name an OUT_DIR on another disk"
            )
    read = plan.run_chunks * plan.chunk_bytes * plan.run_chunks // plan.chunks
    if len(plan.runs) > 1 and read < _SMALL_READ:
        print(f"note: --memory is small for {size:,} bytes: reads are of {read:,} bytes; give more", file=sys.stderr)


def _make_parts(plan: "Plan", workers: int) -> list[str]:
    """Make what is not finished; returns what was summed up over the chunks as read and as written, which must agree."""
    from data_tools.chunk_runs import PartTask, make_run, make_shard
    from data_tools.parallel import run_tasks

    working = plan.working
    shards = [PartTask(plan, number) for number, name in enumerate(plan.shards) if working.verified(name) is None]
    runs = [PartTask(plan, number) for number, name in enumerate(plan.runs) if shards and working.verified(name) is None]
    for label, function, tasks, size in (
        ("sorting into runs", make_run, runs, plan.run_chunks),
        ("gathering", make_shard, shards, plan.shard_chunks),
    ):
        total = sum(min(size, plan.chunks - task.number * size) for task in tasks) * plan.chunk_bytes
        with Progress(label, "bytes", total=total) as progress:
            for _ in run_tasks(function, tasks, workers, progress):
                pass
    return [_content(plan, names) for names in (plan.runs, plan.shards)]


def _content(plan: "Plan", parts: list[str]) -> str:
    """The hash, without regard to order, of the chunks that these parts hold."""
    records = (plan.working.record(name) for name in parts)
    return f"{sum(int(record.details['content'], 16) for record in records if record) % 2**128:032x}"


def _finish(plan: "Plan", contents: list[str]) -> Manifest:
    """Check what was written against what was read, remove the runs, write the record and the manifest."""
    working, source = plan.working, plan.manifest
    parts = working.all_parts(plan.shards)
    files = [entry for part in parts for entry in part.files]
    tokens, documents = (sum(getattr(entry, what) or 0 for entry in files) for what in ("tokens", "documents"))
    if contents[0] != contents[1] or tokens != plan.chunks * plan.width:
        raise UserError(
            f"{working.target}: the chunks written are not those read ({contents[1]}, {contents[0]}); check memory and disk, "
            "and give the command again with --fresh"
        )
    for name in plan.runs:
        (working.files / name).unlink(missing_ok=True)
    record = {
        "source": str(plan.source),
        "source_digest": source.digest,
        "seed": plan.seed,
        "epoch": plan.epoch,
        "window_tokens": plan.width,
        "chunks": plan.chunks,
        "tokens_left_out": source.tokens - tokens,
        "content": contents[1],
    }
    write_whole(working.files / REPORT_NAME, json.dumps(record, indent=2) + "\n")
    changes = {"seed": plan.seed, "window_tokens": plan.width, "tokens": tokens, "documents": documents}
    manifest = source.model_copy(update=changes | {"files": sorted(files, key=lambda entry: entry.name)})
    (working.files / MANIFEST_NAME).unlink(missing_ok=True)
    manifest.write(working.files)
    return manifest
