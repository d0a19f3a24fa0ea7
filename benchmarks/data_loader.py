"""Start, memory and speed of the training loader, beside Megatron-Core's GPTDataset and a numpy memory map in the same run.

    python -m benchmarks.data_loader
    python -m benchmarks.data_loader --tokens 20000000 --windows 2048 --repeats 1      (a quick look)

One dataset of random ids with documents of web-like lengths, read by every loader from the same file in global batches of 576
windows of 4,096 tokens. Each measurement has a process of its own; the loaders take turns. Time to the first batch and memory
are taken at several lengths of the run, tokens per second after the page cache was dropped and with all pages in it. The
quality of the order is computed from the order itself. The table goes to docs/results/data_loader.md.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import parser_for, positive, write_table
from benchmarks.data_loader_job import Job, Result

STEPS = (320, 3_200, 32_000, 3_200_000)
MEGATRON_STEPS = 32_000
"""The longest run whose index Megatron-Core builds in a small machine's memory; at 3.2 million steps it needs about 220 GB."""
SEQUENCE_LENGTH, GLOBAL_BATCH = 4096, 576
VOCABULARY = 128_256
READERS = ("ours", "megatron", "numpy", "pread")


def main(arguments: Sequence[str] | None = None) -> int:
    from benchmarks.data_loader_report import Report, order_quality, render

    options = _parse(arguments)
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="data_loader_", dir=options.folder) as name:
        folder = Path(name) / "tokens"
        _make_data(folder, options.tokens)
        job = Job("", str(folder), SEQUENCE_LENGTH, GLOBAL_BATCH, options.micro_batch, STEPS[0], windows=0)
        starts = {}
        for loader in READERS[:3]:
            for steps in STEPS:
                if loader != "megatron" or steps <= MEGATRON_STEPS:
                    starts[loader, steps] = _measure(dataclasses.replace(job, loader=loader, steps=steps), options.repeats)
        rates: dict[str, list[Result]] = {loader: [] for loader in READERS}
        for _ in range(options.repeats):
            for loader in READERS:
                rates[loader] += _measure(dataclasses.replace(job, loader=loader, windows=options.windows), 1)
    command = " ".join(["python -m benchmarks.data_loader", *(arguments if arguments is not None else sys.argv[1:])])
    report = Report(command, load_average, options.tokens, job, options.windows, starts, rates, order_quality())
    text = render(report)
    write_table(options.output, text)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_for("data_loader", __doc__)
    parser.add_argument("--tokens", type=positive, default=200_000_000, help="of the corpus (default %(default)s)")
    parser.add_argument("--windows", type=positive, default=8_192, help="read in each timed loop (default %(default)s)")
    parser.add_argument("--micro-batch", type=positive, default=8, help="windows in a micro-batch (default %(default)s)")
    parser.add_argument("--repeats", type=positive, default=5, help="of every measurement (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the corpus is written for the time (default: the system's)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/data_loader.md"))
    return parser.parse_args(arguments)


def _make_data(folder: Path, tokens: int) -> None:
    """The corpus and, beside it, Megatron's view of it."""
    from benchmarks.synthetic_tokens import write_dataset
    from data_tools.__main__ import main as data_tools

    write_dataset(folder, tokens, VOCABULARY, "synthetic")
    assert data_tools(["megatron-index", str(folder), str(folder / "megatron")]) == 0


def _measure(job: Job, repeats: int) -> list[Result]:
    results = []
    for number in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            asked, answered = Path(name) / "job.json", Path(name) / "result.json"
            asked.write_text(json.dumps(dataclasses.asdict(job)))
            command = [sys.executable, "-m", "benchmarks.data_loader_job", str(asked), str(answered)]
            # One thread each: all of the loaders' work is copying, which more threads only get in each other's way for.
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            subprocess.run(command, check=True, env=environment)
            results.append(Result(**json.loads(answered.read_text())))
        rate = f", {results[-1].warm / 1e6:.0f} million tokens/s warm" if results[-1].warm else ""
        first = f"first batch in {results[-1].first_batch:.3f} s"
        print(f"{job.loader}, {job.steps} steps, {number + 1}/{repeats}: {first}{rate}", file=sys.stderr, flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
