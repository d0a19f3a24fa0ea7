"""Supervised fine-tuning with and without packing, beside plain TRL: tokens/s, and how much of what is computed is padding.

    python -m benchmarks.sft --steps 20 --repeats 3

The same conversations, of lengths as chats have them (most short, a few long), through `post_training sft` with data.packing
on and off, and through TRL's SFTTrainer as its documentation sets it up. Each side in a fresh process, in turns; a step holds
about as many tokens on each. Padding is counted at the model's entrance, where every side must pass; tokens are the rest.
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

PACKAGES = ("trl", "transformers", "torch")
SIDES = {
    "packed": "this repository: sft, packed",
    "unpacked": "this repository: sft, data.packing=false",
    "trl": "TRL: SFTTrainer, its defaults",
}
MAX_LENGTH = 1024
SAMPLES, ROWS = 8, 2
"""In a step: conversations where each is a row of its own, or packed rows. Both hold some 2,000 tokens."""


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(parse, run, arguments)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_for("sft", __doc__)
    parser.add_argument("--steps", type=positive, default=20, help="measured, after two that are not (default %(default)s)")
    parser.add_argument("--repeats", type=positive, default=3, help="measurements of each side (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/sft_cpu.md"))
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Measure, print and write the table."""
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="sft_") as name:
        folder = Path(name)
        _make_inputs(folder, rows=SAMPLES * (options.steps + 3) * 2)
        for number in range(1, options.repeats + 1):
            for side in SIDES:
                line = module_output("benchmarks.sft_side", side, folder, options.steps).splitlines()[-1]
                results[side].append(json.loads(line))
                print(f"{number}/{options.repeats} {side}: {results[side][-1]}", file=sys.stderr, flush=True)
    write_table(options.output, _render(options, arguments, results))


def _make_inputs(folder: Path, rows: int) -> None:
    """A chat model, and conversations cut from Python's own documentation: lengths are lognormal, their median 200 tokens."""
    module_output("data_tools", "corpus", folder / "text")
    module_output("data_tools", "train-tokenizer", folder / "text" / "docs", folder / "tokenizer", "--vocab-size", 8192)
    module_output("benchmarks.sft_side", "model", folder)
    files = sorted((folder / "text" / "docs").glob("*.jsonl"))
    text = "\n".join(json.loads(line)["text"] for path in files for line in path.read_text(encoding="utf8").splitlines())
    draw = random.Random(0)
    with (folder / "chats.jsonl").open("w", encoding="utf8") as file:
        for number in range(rows):
            size = min(2800, max(100, int(draw.lognormvariate(6.4, 0.9))))
            at = draw.randrange(len(text) - size)
            asked, told = (text[begin:end].strip() or "-" for begin, end in pairwise([at, at + size // 4, at + size]))
            turns = [{"role": "user", "content": f"{number}: {asked}"}, {"role": "assistant", "content": told}]
            file.write(json.dumps({"messages": turns}) + "\n")


def _render(options: argparse.Namespace, arguments: Sequence[str], results: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        "# SFT with and without packing",
        "",
        f"    python -m benchmarks.sft {shlex.join(arguments)}".rstrip(),
        "",
        f"- Machine: {cpu_model()}; one process, fp32.",
        f"- Versions: {versions(PACKAGES)}.",
        f"- Model: {int(results['packed'][0]['parameters']):,} parameters; rows of at most {MAX_LENGTH:,} tokens; a step "
        f"holds {ROWS} packed rows, or {SAMPLES} conversations padded to the longest.",
        f"- Measured: {options.repeats} repeats of {options.steps} steps, the sides in turns, each in a fresh process. "
        "Medians, with the lowest and the highest.",
        "- On GPUs not yet measured.",
        "",
        "| | tokens/s | padding, % of what is computed | tokens a step | largest memory, MB |",
        "|---|---|---|---|---|",
    ]
    for side, measured in results.items():
        rates = spread([one["tokens"] / one["seconds"] for one in measured], "{:,.0f}")
        padding = spread([100 * (1 - one["tokens"] / one["slots"]) for one in measured], "{:.1f}")
        steps = spread([one["tokens"] / options.steps for one in measured], "{:,.0f}")
        memory = spread([one["megabytes"] for one in measured], "{:,.0f}")
        lines.append(f"| {SIDES[side]} | {rates} | {padding} | {steps} | {memory} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
