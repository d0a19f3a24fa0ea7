"""Tokens per second of `python -m data_tools tokenize`, beside datatrove's own pipeline and Megatron-LM's, in the same run.

    python -m benchmarks.tokenize_text --megabytes 200 --repeats 5
    python -m benchmarks.tokenize_text --text DIR --tokenizer DIR --workers 16

All read the same JSON Lines on the same cores (the process's affinity is set to as many as there are workers) with the same
tokenizer, and take turns, each time as a command in a fresh process with its start-up and its writing. Ours and datatrove's
shuffle the documents of each shard; ours also hashes, looks for repetition and keeps what a resume needs. Nothing is
written when the sides' token counts differ: then they do not do the same work.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.common import cpu_model, module_output, parser_for, positive, run_benchmark, spread, versions, write_table
from smol_config import UserError

PACKAGES = ("tokenizers", "datatrove", "transformers", "megatron-core", "torch", "numpy")
SIDES = {
    "ours": "this repository: data_tools tokenize",
    "datatrove": "datatrove: JsonlReader, DocumentTokenizer",
    "megatron": "Megatron-LM: preprocess_data.py's flow",
}
_REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Measurement:
    """One run of one side."""

    tokens: int
    seconds: float
    cpu_seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(parse, run, arguments)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_for("tokenize_text", __doc__)
    parser.add_argument("--text", type=Path, metavar="DIR", help="folder of *.jsonl (default: the corpus command's, repeated)")
    parser.add_argument("--megabytes", type=positive, default=200, help="of that repeated text (default %(default)s)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: 32,000 ids, trained on the corpus")
    parser.add_argument(
        "--workers", type=positive, default=len(os.sched_getaffinity(0)), help="cores and processes (default: all)"
    )
    parser.add_argument("--repeats", type=positive, default=5, help="measurements of each side (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/tokenize.md"))
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Measure, check, print and write the table."""
    cores = len(os.sched_getaffinity(0))
    if options.workers > cores:
        raise UserError(f"--workers {options.workers}: this machine lends {cores} cores; give {cores} or less")
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tokenize_") as name:
        folder = Path(name)
        text, tokenizer = _prepare(options, folder)
        megabytes = sum(path.stat().st_size for path in text.glob("*.jsonl")) / 1e6
        results: dict[str, list[Measurement]] = {side: [] for side in SIDES}
        for number in range(1, options.repeats + 1):
            for side, measured in results.items():
                measured.append(_measure(side, text, folder / "out", tokenizer, options.workers))
                rate = measured[-1].tokens / measured[-1].seconds
                print(f"{number}/{options.repeats} {side}: {rate:,.0f} tokens/s", file=sys.stderr, flush=True)
    counts = {side: measured[0].tokens for side, measured in results.items()}
    if len(set(counts.values())) > 1:
        raise UserError(
            f"the sides wrote different numbers of tokens ({counts}): they do not do the same work; nothing is written"
        )
    table = _render(options, arguments, results, megabytes, load_average)
    write_table(options.output, table)


def _prepare(options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Folder of text and folder of the tokenizer, made where they are not given."""
    text, tokenizer = options.text, options.tokenizer
    if text and not any(text.glob("*.jsonl")):
        raise UserError(f"--text {text} holds no .jsonl file; give a folder of JSON Lines")
    if not (text and tokenizer):
        _command("data_tools", "corpus", folder / "corpus")
        sources = [folder / "corpus" / name for name in ("code", "docs")]
    if not tokenizer:
        tokenizer = folder / "tokenizer"
        _command("data_tools", "train-tokenizer", *sources, tokenizer, "--vocab-size", 32_000)
    if not text:
        text = folder / "text"
        text.mkdir()
        _repeat(sources, text, options.megabytes * 10**6, files=4 * options.workers)
    return text.resolve(), tokenizer.resolve()


def _repeat(sources: Sequence[Path], text: Path, size: int, files: int) -> None:
    """The documents of `sources` dealt out to `files` files, over and over until there are `size` bytes."""
    lines = [
        line for folder in sources for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines(True)
    ]
    open_files = [(text / f"{index:03d}.jsonl").open("wb") for index in range(files)]
    written = number = 0
    while written < size:
        written += open_files[number % files].write(lines[number % len(lines)])
        number += 1
    for file in open_files:
        file.close()


def _measure(side: str, text: Path, output: Path, tokenizer: Path, workers: int) -> Measurement:
    """One run in a fresh process; its output is counted and removed."""
    command: tuple[object, ...]
    if side == "ours":
        tasks = len(list(text.glob("*.jsonl")))
        command = ("data_tools", "tokenize", text, output, "--tokenizer", tokenizer, "--tasks", tasks, "--workers", workers)
    else:
        command = ("benchmarks.tokenize_peers", side, text, output, tokenizer, workers)
    timed = json.loads(_command("benchmarks.timed_command", workers, *command))
    size = sum(path.stat().st_size for path in output.iterdir() if path.suffix in (".ds", ".bin"))
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf8"))["model"]["vocab"]
    shutil.rmtree(output)
    shutil.rmtree(output.parent / "logs", ignore_errors=True)
    token_size = 2 if len(vocabulary) < 65500 else 4
    return Measurement(size // token_size, timed["seconds"], timed["cpu_seconds"])


def _command(*module_and_arguments: object) -> str:
    """A module's output, offline, from wherever this one was called."""
    paths = [str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
    return module_output(*module_and_arguments, environment=environment)


def _render(
    options: argparse.Namespace,
    arguments: Sequence[str],
    results: dict[str, list[Measurement]],
    megabytes: float,
    load_average: float,
) -> str:
    tokens = results["ours"][0].tokens
    ours_rate = median(one.tokens / one.seconds for one in results["ours"])
    ours_cpu = median(one.tokens / one.cpu_seconds for one in results["ours"])
    lines = [
        "# Tokenising: tokens per second",
        "",
        f"    python -m benchmarks.tokenize_text {shlex.join(arguments)}".rstrip(),
        "",
        f"- Machine: {cpu_model()}, {options.workers} cores used; load average at the start {load_average:.1f}.",
        f"- Versions: {versions(PACKAGES)}.",
        f"- Text: {megabytes:,.0f} MB of JSON Lines, {tokens:,} tokens"
        + (f" ({options.text})." if options.text else ": Python's own library (the `corpus` command), repeated."),
        f"- Measured: {len(results['ours'])} repeats, the sides in turns, each as a command in a fresh process, start-up and "
        "writing included. Medians, with the lowest and the highest.",
        "",
        "| | tokens/s | tokens/s per core | ours is faster by | tokens per CPU second | ours needs less by |",
        "|---|---|---|---|---|---|",
    ]
    for side, measured in results.items():
        rates = [one.tokens / one.seconds for one in measured]
        rate = f"{spread(rates, '{:,.0f}')} | {median(rates) / options.workers:,.0f}"
        cpu_rate = median(one.tokens / one.cpu_seconds for one in measured)
        faster, less = f"{ours_rate / median(rates):.2f} times", f"{ours_cpu / cpu_rate:.2f} times"
        lines.append(f"| {SIDES[side]} | {rate} | {faster} | {cpu_rate:,.0f} | {less} |")
    return "\n".join([*lines, "", *_NOTES, ""])


_NOTES = [
    "- CPU seconds are those of all of a command's processes: on a busy machine they say more than the clock.",
    "- Ours and datatrove's write a shard for each input file, its documents shuffled; the bytes are the same where no text "
    "names a special token (a test). Ours also takes the SHA-256 of every file, flushes it to the disk, looks for repeated "
    "spans and writes manifest and report.",
    "- Megatron's flow is made again in benchmarks/tokenize_peers.py, since the wheel of megatron-core holds its builder but "
    "not tools/preprocess_data.py. It keeps the input's order and writes one .bin and .idx; its parent writes while the "
    "workers tokenise, all on the same cores.",
    "- Where the gain comes from: encodings without offsets (`encode_batch_fast`), ids copied once into an array, and the "
    "shuffled copy gathered in large blocks and hashed on its way.",
]


if __name__ == "__main__":
    sys.exit(main())
