"""`inspect`: what a step, or a range of samples, of a run sees: stages, datasets, epochs, windows, documents and their text.

The other end of the flow (shards -> order -> loader -> trainer), asked for one place. The data order is a function of the
configuration and the sample's number, so any step of any run is answered at once, before, during and after training. With
--run the segments are those of the run's newest checkpoint, so that skipped ranges and changed batch sizes are as they were.
Steps are counted as in logs and metrics.jsonl: the first is 1.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_tools.output import check_file
from data_tools.rendering import Decode, html_page, ids_as_text, text_page, window_json
from data_tools.run_config import DataRun, load_data_run
from data_tools.run_folder import load_begun_run
from data_tools.tokenizer_file import open_tokenizer
from data_tools.windows_seen import SeenWindow, seen_windows
from smol_config import UserError
from smol_console import Progress, add_command, whole_number
from smol_data.schedule import Segment, batch_at, segment_of, step_of, total_steps
from smol_data.shards import TokenDataset, open_datasets
from smol_files import write_whole

MOST_WINDOWS = 65_536
"""Listed at once. Their places are held in memory, and the text of those that --limit allows."""


def add_parser(subparsers: Any) -> None:
    """Add `inspect` to the command line."""
    parser = add_command(
        subparsers,
        "inspect",
        "Show what a step or a range of samples of a run sees: datasets, epochs, windows, documents and their text.",
        "python -m data_tools inspect --config configs/quickstart.yaml --step 300 --limit 2",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", type=Path, metavar="C.yaml", help="configuration of a run, as if it ran from its beginning")
    which.add_argument(
        "--run", type=Path, metavar="RUN", help="folder of a run, or one iter_* folder: as it really ran", dest="begun"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", type=whole_number(0), metavar="N", help="one optimizer step; the first is 1, as in the logs")
    what.add_argument("--samples", type=_sample_range, metavar="A:B", help="samples A to B - 1 of the data order, from 0")
    parser.add_argument("--limit", type=whole_number(0), default=8, metavar="N", help="windows shown with text (default 8)")
    parser.add_argument("--no-text", action="store_true", help="the table alone; needs no tokenizer")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a window")
    form.add_argument("--html", type=Path, metavar="OUT", help="one HTML file, complete in itself")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; raises UserError on a step outside the run, skipped samples, or data that cannot be read."""
    if options.html:
        check_file(options.html)
    data_run, segments, digests = _run_of(options)
    first, stop = _samples(options, segments)
    datasets = _open(data_run, segments, first, stop)
    try:
        _check_unchanged(datasets, digests)
        shown = 0 if options.no_text else min(options.limit, stop - first)
        decode = _decoder(data_run.data.tokenizer, datasets) if shown else None
        windows = _progress(seen_windows(segments, data_run.data.seed, datasets, first, stop), stop - first)
        _show(options, windows, _heading(segments, first, stop, data_run.data.sequence_length), shown, decode)
    finally:
        for dataset in datasets.values():
            dataset.close()
    if 0 < shown < stop - first:
        print(f"text of {shown} of {stop - first:,} windows; --limit N shows more", file=sys.stderr)


def _show(options: argparse.Namespace, windows: Iterator[SeenWindow], heading: str, shown: int, decode: Decode | None) -> None:
    if options.json:
        for index, seen in enumerate(windows):
            print(json.dumps(window_json(seen, decode, index < shown), ensure_ascii=False))
    elif options.html:
        try:
            write_whole(options.html, "".join(html_page(heading, windows, shown, decode or ids_as_text)))
        except OSError as error:
            raise UserError(f"{options.html} cannot be written: {error.strerror}; check its place, rights and space") from error
        print(f"written: {options.html}")
    else:
        print(f"{heading}\n")
        for line in text_page(windows, shown, decode or ids_as_text, colours=sys.stdout.isatty()):
            print(line)


def _run_of(options: argparse.Namespace) -> tuple[DataRun, list[Segment], dict[str, str]]:
    """Configuration, segments, and the digests of the datasets as they were consumed (none with --config)."""
    if options.begun:
        begun = load_begun_run(options.begun, options.overrides)
        return begun.data_run, begun.segments, dict(begun.digests)
    data_run = load_data_run(options.config, options.overrides)
    return data_run, data_run.segments(), {}


def _samples(options: argparse.Namespace, segments: Sequence[Segment]) -> tuple[int, int]:
    """The samples asked for, all of which the run trains."""
    if options.step is not None:
        steps = total_steps(segments)
        if not 1 <= options.step <= steps:
            raise UserError(
                f"--step {options.step}: the run has the steps 1 to {steps}; give one of them or lengthen data.stages"
            )
        batch = batch_at(segments, options.step - 1)
        return batch.first_sample, batch.first_sample + batch.batch_size
    first, stop = options.samples
    if stop - first > MOST_WINDOWS:
        raise UserError(
            f"--samples {first}:{stop}: {stop - first:,} windows are too many at once; ask for {MOST_WINDOWS:,} or fewer"
        )
    return first, stop


def _open(data_run: DataRun, segments: Sequence[Segment], first: int, stop: int) -> dict[str, TokenDataset]:
    """The datasets that samples [first, stop) may come from; raises DataError for a sample that the run does not train."""
    names, sample, data = set[str](), first, data_run.data
    while sample < stop:
        segment = segment_of(segments, sample)
        names |= {name for name, weight in segment.weights.items() if weight > 0}
        sample = segment.end_sample
    return open_datasets({name: data.datasets[name] for name in sorted(names)}, data.sequence_length, data.tokenizer)


def _check_unchanged(datasets: dict[str, TokenDataset], digests: dict[str, str]) -> None:
    for name, dataset in datasets.items():
        if name in digests and digests[name] != dataset.manifest.digest:
            raise UserError(
                f"dataset {name!r} in {dataset.folder} is not the one that the run has consumed: manifest digest "
                f"{dataset.manifest.digest}, checkpoint {digests[name]}; put the old folder back"
            )


def _decoder(tokenizer: str, datasets: dict[str, TokenDataset]) -> Decode | None:
    """Ids to text; None, said on stderr, when the tokenizer is not here or is another than the datasets'."""
    try:
        file = open_tokenizer(tokenizer)
        if other := [d for d in datasets.values() if d.manifest.tokenizer.sha256 != file.sha256]:
            raise UserError(f"data.tokenizer={tokenizer} has changed since dataset {other[0].name} was made with it")
    except UserError as error:
        print(f"ids instead of text: {str(error).replace('--tokenizer', 'data.tokenizer')}", file=sys.stderr)
        return None
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(file.file))
    return lambda ids: str(loaded.decode(ids, skip_special_tokens=False))


def _progress(windows: Iterator[SeenWindow], total: int) -> Iterator[SeenWindow]:
    with Progress("reading", "windows", total=total) as progress:
        for seen in windows:
            yield seen
            progress.advance()


def _heading(segments: Sequence[Segment], first: int, stop: int, sequence_length: int) -> str:
    begin, end = step_of(segments, first) + 1, step_of(segments, stop - 1) + 1
    steps = f"step {begin:,}" if begin == end else f"steps {begin:,} to {end:,}"
    samples = f"samples {first:,} to {stop - 1:,}, {stop - first:,} windows of {sequence_length:,} tokens"
    return f"{steps} of {total_steps(segments):,}: {samples}"


def _sample_range(text: str) -> tuple[int, int]:
    """An argparse type: A:B with A < B."""
    first, colon, stop = text.partition(":")
    if not (colon and first.isdecimal() and stop.isdecimal() and int(first) < int(stop)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range; give A:B with A below B, for samples A to B - 1")
    return int(first), int(stop)
