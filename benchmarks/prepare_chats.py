"""Preparing chats for training (render, tokenise, mask, check, pack), beside TRL's own preparation of the same file.

    python -m benchmarks.prepare_chats --rows 20000 --repeats 3
    python -m benchmarks.prepare_chats --ours-alone --rows 1000000 --characters 200 --output MILLION.md

Both sides start from one file of JSON Lines and a chat model's folder, and end with packed rows on disk; they take turns, each
in a fresh process, with imports left out of the time. Nothing is written when their token counts differ, or those of trained
tokens: then they do not do the same work. Memory is the largest resident set of the process, its libraries included.
"""

import argparse
import json
import random
import shlex
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.common import cpu_model, module_output, parser_for, positive, run_benchmark, spread, versions, write_table
from smol_config import UserError

PACKAGES = ("trl", "datasets", "transformers", "tokenizers", "pyarrow", "torch")
SIDES = {"ours": "this repository: post_training.prepare", "trl": "TRL: SFTTrainer's own preparation, packing bfd"}
MAX_LENGTH = 2048


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(parse, run, arguments)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_for("prepare_chats", __doc__)
    parser.add_argument(
        "--rows", type=positive, default=20_000, help="conversations of two questions and answers (default %(default)s)"
    )
    parser.add_argument("--characters", type=positive, default=1900, help="of each conversation (default %(default)s)")
    parser.add_argument("--repeats", type=positive, default=3, help="measurements of each side (default %(default)s)")
    parser.add_argument("--ours-alone", action="store_true", help="do not run TRL: for the memory of many rows")
    parser.add_argument("--output", type=Path, default=Path("docs/results/prepare_chats.md"))
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Measure, check, print and write the table."""
    sides = ["ours"] if options.ours_alone else list(SIDES)
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory(prefix="prepare_chats_") as name:
        folder = Path(name)
        _make_inputs(folder, options.rows, options.characters)
        for number in range(1, options.repeats + 1):
            for side in sides:
                results[side].append(_measure(side, folder))
                print(f"{number}/{options.repeats} {side}: {results[side][-1]}", file=sys.stderr, flush=True)
    counts = {(one["tokens"], one["trained"]) for measured in results.values() for one in measured}
    if len(counts) > 1:
        raise UserError(f"the sides have different numbers of (tokens, trained tokens): {sorted(counts)}; nothing is written")
    table = _render(options, arguments, results)
    write_table(options.output, table)


def _make_inputs(folder: Path, rows: int, size: int) -> None:
    """A chat model with a tokenizer of 32,000 ids, and conversations cut from Python's own documentation and code."""
    module_output("data_tools", "corpus", folder / "text")
    sources = [folder / "text" / kind for kind in ("code", "docs")]
    module_output("data_tools", "train-tokenizer", *sources, folder / "tokenizer", "--vocab-size", 32_000)
    module_output("benchmarks.prepare_chats_side", "model", folder)
    files = [path for source in sources for path in sorted(source.glob("*.jsonl"))]
    texts = [json.loads(line)["text"] for path in files for line in path.read_text(encoding="utf8").splitlines()]
    texts = [text for text in texts if len(text) > size]
    generator = random.Random(0)
    with (folder / "chats.jsonl").open("w", encoding="utf8") as file:
        for number in range(rows):
            text = generator.choice(texts)
            at = generator.randrange(len(text) - size)
            edges = [at, at + size // 10, at + size // 2, at + size]
            asked, told, more = (text[start:end].strip() or "-" for start, end in pairwise(edges))
            turns = [("user", f"{number}: {asked}"), ("assistant", told), ("user", "Go on."), ("assistant", more)]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")


def _measure(side: str, folder: Path) -> dict[str, float]:
    measured: dict[str, float] = json.loads(module_output("benchmarks.prepare_chats_side", side, folder).splitlines()[-1])
    return measured


def _render(options: argparse.Namespace, arguments: Sequence[str], results: dict[str, list[dict[str, float]]]) -> str:
    one = results["ours"][0]
    lines = [
        "# Preparing chats",
        "",
        f"    python -m benchmarks.prepare_chats {shlex.join(arguments)}".rstrip(),
        "",
        f"- Machine: {cpu_model()}.",
        f"- Versions: {versions(PACKAGES)}.",
        f"- Data: {options.rows:,} conversations of four turns, {int(one['tokens']):,} tokens, {int(one['trained']):,} of them "
        f"trained; packed into rows of {MAX_LENGTH:,}.",
        f"- Measured: {options.repeats} repeats, the sides in turns, each in a fresh process. Medians, with the lowest and the "
        "highest.",
        "",
        "| | seconds | CPU seconds | tokens/s | largest memory, MB |",
        "|---|---|---|---|---|",
    ]
    for side, measured in results.items():
        columns = [[run[name] for run in measured] for name in ("seconds", "cpu_seconds", "megabytes")]
        rates = [run["tokens"] / run["seconds"] for run in measured]
        cells = [spread(columns[0], "{:.1f}"), spread(columns[1], "{:.1f}"), spread(rates, "{:,.0f}")]
        lines.append(f"| {SIDES[side]} | {' | '.join([*cells, spread(columns[2], '{:,.0f}')])} |")
    lines += [
        "",
        "- Ours also checks every row, looks for duplicates, draws the mixture and writes the manifest. It encodes many rows "
        "at once, on the tokenizer's threads; TRL encodes a row at a time (in one process, its default).",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
