"""`tokenize`: documents to token shards with their manifest, the folder that a config's `data.datasets` names.

Third step of the flow: text -> tokenizer -> **token shards** -> smol_data -> trainer. This file has the command line and
`tokenize`, the function behind it that other commands call; shard_work.py makes a shard, executors.py runs many.

    OUT_DIR/00000_00000_doc_shuffled.ds            token ids, EOS after every document (layouts: shard_writer.py)
    OUT_DIR/00000_00000_doc_shuffled.ds.index      document ends
    OUT_DIR/00000_00000_doc_shuffled.ds.metadata   datatrove's note
    OUT_DIR/report.json                            what was left out and why, what was found (finish_tokens.py)
    OUT_DIR/manifest.json                          smol_data.manifest.Manifest

Task r of --tasks makes one shard of the input files r, r + tasks, ...; so the bytes depend on inputs, tokenizer, seed, filters
and --tasks, never on the workers or on how often the command was killed. The tokenizer's own template (a BOS, say) is not
applied: a document is its text and one EOS.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_tools.inputs import ALL_ENDINGS, Inputs, find_inputs
from data_tools.output import Working, resumable_folder
from data_tools.repetition import RepetitionRule
from data_tools.tokenizer_file import TokenizerFile, open_tokenizer
from smol_config import UserError
from smol_console import add_command, whole_number
from smol_data.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    from datatrove.pipeline.base import PipelineStep

    from data_tools.quality_filters import FilterSetting
    from data_tools.shard_work import ShardWork

Executor = Literal["local", "slurm", "ray"]
EXECUTORS: tuple[Executor, ...] = ("local", "slurm", "ray")

_BYTES_A_SHARD = 2**30


@dataclass(frozen=True)
class TokenizeSettings:
    """What `tokenize` is to do. Everything above `workers` decides the bytes and may not change between two attempts."""

    inputs: Inputs
    """From data_tools.inputs.find_inputs. `columns` there: what `steps` need as metadata."""
    out_dir: Path
    tokenizer: TokenizerFile
    """From data_tools.tokenizer_file.open_tokenizer."""
    tasks: int | None = None
    """Shards, each of whole input files; None: one for every GiB of input, at most one for every file."""
    seed: int = 0
    """Of the order of documents inside each shard."""
    repetition: RepetitionRule = field(default_factory=RepetitionRule)
    filters: "tuple[FilterSetting, ...]" = ()
    """From data_tools.quality_filters.load_filters."""
    steps: "tuple[PipelineStep, ...]" = ()
    """datatrove steps between the reader and the filters; they can be pickled, and are copied for each shard. What a
    BaseFilter drops is counted under its class's name and reason."""
    steps_identity: str = ""
    """Changes whenever `steps` would treat a document differently."""
    workers: int | None = None
    """Processes, or tasks at work at a time on Slurm and Ray; None: as many as there are cores, or tasks."""
    max_broken_lines: int = 0
    """JSON lines that may be left out because they hold no document; one more ends the run."""
    executor: Executor = "local"
    slurm: Mapping[str, str] = field(default_factory=dict)
    """Options of the Slurm jobs by executors.SLURM_OPTIONS' names; partition and time are needed."""
    fresh: bool = False
    """Do not use the finished shards of an earlier attempt."""


def tokenize(settings: TokenizeSettings) -> Manifest | None:
    """Write the token dataset `settings.out_dir`; returns its manifest, or None when Slurm has taken the work.

    The folder appears under its name when all is done. A run that was killed keeps its finished shards in
    `.NAME.partial` beside it; called again with the same settings it checks their hashes and makes the others. On Slurm the
    call returns once two jobs are submitted; the second checks everything and names the folder. Raises UserError: unusable
    inputs or settings, a folder in use, shards of other settings, a killed worker, a full disk.
    """
    tasks = settings.tasks or max(1, min(len(settings.inputs.files), -(-settings.inputs.bytes // _BYTES_A_SHARD)))
    if tasks > (count := len(settings.inputs.files)):
        raise UserError(f"--tasks {tasks}: a shard takes whole files and there are {count}; give {count} or less")
    if (settings.out_dir / MANIFEST_NAME).exists():
        raise UserError(
            f"{settings.out_dir} already holds a finished dataset ({MANIFEST_NAME}); remove it or name a new folder"
        )
    work = _work(settings, tasks)
    _check_executor(settings, work.working)
    with resumable_folder(settings.out_dir, work.identity, settings.fresh):
        if settings.executor == "slurm":
            _submit(work, settings)
            return None
        return _run(work, settings)


def _work(settings: TokenizeSettings, tasks: int) -> "ShardWork":
    from data_tools.shard_work import ShardWork

    return ShardWork(
        working=Working(settings.out_dir.resolve()),
        inputs=settings.inputs,
        tokenizer=settings.tokenizer,
        shards=tasks,
        seed=settings.seed,
        repetition=settings.repetition,
        filters=settings.filters,
        steps=settings.steps,
        steps_identity=settings.steps_identity,
        max_broken_lines=settings.max_broken_lines,
    )


def _check_executor(settings: TokenizeSettings, working: Working) -> None:
    from data_tools.executors import check_ray, check_slurm_options, jobs_in_queue

    if settings.executor == "slurm":
        check_slurm_options(settings.slurm)
    elif settings.executor == "ray":
        check_ray()
    if (jobs := working.jobs) and jobs_in_queue(jobs):
        raise UserError(f"{settings.out_dir} is being written by Slurm jobs {' and '.join(jobs)}; wait, or scancel them first")


def _run(work: "ShardWork", settings: TokenizeSettings) -> Manifest:
    """Make all shards and wait for them."""
    from data_tools.executors import run_local, run_ray
    from data_tools.finish_tokens import finish, watch
    from data_tools.shard_work import ShardStep

    workers = min(work.shards, settings.workers or len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as notes, watch(work):
        if settings.executor == "ray":
            run_ray(ShardStep(work), work.shards, settings.workers, work.working.logs)
        else:
            run_local(ShardStep(work), work.shards, workers, Path(notes))
    return finish(work)


def _submit(work: "ShardWork", settings: TokenizeSettings) -> None:
    from data_tools.executors import submit_slurm
    from data_tools.finish_tokens import FinishStep
    from data_tools.shard_work import ShardStep

    logs = work.working.logs
    jobs = submit_slurm(ShardStep(work), FinishStep(work), work.shards, settings.workers, settings.slurm, logs)
    work.working.hand_over(jobs)
    print(f"submitted: Slurm jobs {jobs[0]} (shards) and {jobs[1]} (check and manifest); logs: {logs}")


# --- the command line ----------------------------------------------------------------------------------------------------


def add_parser(subparsers: Any) -> None:
    """Add `tokenize` to the command line."""
    parser = add_command(
        subparsers,
        "tokenize",
        "Tokenise documents into shards with a manifest; every document ends with the tokenizer's EOS token. "
        "A command that was killed goes on when it is given again.",
        "python -m data_tools tokenize runs/corpus/code runs/tokens/code --tokenizer runs/tokenizer",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help=f"files or folders of {ALL_ENDINGS}, of one kind")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="new folder for the shards and manifest.json")
    parser.add_argument("--tokenizer", required=True, metavar="T", help="folder with a tokenizer.json, or Hub name")
    parser.add_argument(
        "--text-key", default="text", metavar="KEY", help="key or column of the text, or several as a+b (default text)"
    )
    parser.add_argument(
        "--files", action="append", default=[], metavar="GLOB", help="of folders take these, as 'data/train-*'; several times"
    )
    parser.add_argument(
        "--tasks", type=whole_number(1), metavar="N", help="shards, each of whole files (default: one for a GiB of input)"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="of the document shuffle (default 0)")
    rule = RepetitionRule()
    parser.add_argument(
        "--repetition",
        choices=("keep", "flag", "drop"),
        default=rule.action,
        help=f"documents with a short span of tokens over and over: keep and count, flag, drop (default {rule.action})",
    )
    parser.add_argument(
        "--repetition-period",
        type=whole_number(1),
        default=rule.period,
        metavar="N",
        help=f"longest such span, in tokens (default {rule.period})",
    )
    parser.add_argument(
        "--repetition-count",
        type=whole_number(2),
        default=rule.count,
        metavar="N",
        help=f"in a row at least this often (default {rule.count})",
    )
    parser.add_argument("--filters", type=Path, metavar="F.yaml", help="datatrove's quality filters to apply, by name")
    parser.add_argument(
        "--max-broken-lines", type=whole_number(0), default=0, metavar="N", help="JSON lines to leave out (default 0)"
    )
    parser.add_argument("--executor", choices=EXECUTORS, default="local", help="where the shards are made (default local)")
    parser.add_argument("--slurm", default="", metavar="KEY=VALUE,...", help="of the jobs: partition and time, also cpus, mem")
    parser.add_argument(
        "--workers",
        type=whole_number(1),
        metavar="N",
        help="processes (default: tasks or cores, whichever is less); one task alone uses all cores while it tokenises",
    )
    parser.add_argument("--fresh", action="store_true", help="start over, without the finished shards of an earlier attempt")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; raises UserError on unusable inputs, tokenizer or settings, or when a task fails."""
    inputs = find_inputs(options.inputs, options.text_key, options.files)
    filters: tuple[FilterSetting, ...] = ()
    if options.filters:
        from data_tools.quality_filters import columns_of, load_filters

        filters = load_filters(options.filters)
        inputs = replace(inputs, columns=columns_of(filters))
    rule = RepetitionRule(action=options.repetition, period=options.repetition_period, count=options.repetition_count)
    settings = TokenizeSettings(
        inputs,
        options.out_dir,
        open_tokenizer(options.tokenizer),
        options.tasks,
        options.seed,
        rule,
        filters,
        workers=options.workers,
        max_broken_lines=options.max_broken_lines,
        executor=options.executor,
        slurm=parse_slurm(options.slurm),
        fresh=options.fresh,
    )
    print(f"tokenising {len(inputs.files):,} files, {inputs.bytes:,} bytes", file=sys.stderr)
    manifest = tokenize(settings)
    if manifest is None:
        return
    from data_tools.finish_tokens import print_report

    print(f"{manifest.documents:,} documents, {manifest.tokens:,} tokens ({manifest.dtype}), {len(manifest.shards)} shards")
    print_report(options.out_dir)
    print(f"written: {options.out_dir}")


def parse_slurm(text: str) -> dict[str, str]:
    """`a=b,c=d` as a mapping."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    if bad := [name for name, separator, value in pairs if not (name and separator and value)]:
        raise UserError(f"--slurm {text}: {bad[0]!r} is not of the form key=value; write it like partition=cpu,time=20:00:00")
    return {name: value for name, _, value in pairs}
