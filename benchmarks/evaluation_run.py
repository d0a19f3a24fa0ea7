"""What a suite costs: `python -m evaluation run` beside lm-eval's own command on the same tasks, whose scores must agree.

    python -m benchmarks.evaluation_run runs/quickstart/hf --repeats 3

Each side is a fresh process, in turns, so that starting counts. lm-eval's command knows no forms of a suite: tasks with `form`
are left out of the comparison, and a third side is the whole suite, which is what a checkpoint costs.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.common import cpu_model, module_output, parser_for, positive, run_benchmark, spread, versions, write_table
from evaluation.suite import Suite, load_suite
from smol_config import UserError

PACKAGES = ("lm_eval", "transformers", "torch")
SIDES = {
    "ours": "this repository, the tasks that both have",
    "lm_eval": "lm-eval's command, the same tasks",
    "whole": "this repository, the whole suite",
}
AGREE = 1e-6
"""Largest relative difference of a score that is rounding."""


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(parse, run, arguments)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_for("evaluation_run", __doc__)
    parser.add_argument("model", metavar="HF_DIR", type=Path, help="such as runs/quickstart/hf")
    parser.add_argument("--suite", type=Path, default=Path("evaluation/suites/offline.yaml"))
    parser.add_argument("--repeats", type=positive, default=3, help="measurements of each side (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/evaluation_run.md"))
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Measure, print and write the table. Raises UserError where the two sides' scores differ."""
    suite = load_suite(options.suite)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="evaluation_run_") as name:
        folder = Path(name)
        (folder / "shared.yaml").write_text(yaml.safe_dump(_shared(suite).model_dump(mode="json", exclude_none=True)))
        suites = {"ours": folder / "shared.yaml", "whole": options.suite}
        for number in range(1, options.repeats + 1):
            for side in SIDES:
                output, began = folder / f"{side}_{number}", time.perf_counter()
                if side == "lm_eval":
                    module_output(*_lm_eval(options.model, _shared(suite), output))
                else:
                    module_output("evaluation", "run", options.model, "--suite", suites[side], "--output", output)
                seconds[side].append(time.perf_counter() - began)
                print(f"{number}/{options.repeats} {side}: {seconds[side][-1]:.1f} s", file=sys.stderr, flush=True)
        compared = _compare(folder / "ours_1", folder / "lm_eval_1")
    write_table(options.output, _render(options, arguments, suite, seconds, compared))


def _shared(suite: Suite) -> Suite:
    """What lm-eval's command can be asked for, too."""
    return suite.model_copy(update={"tasks": tuple(task for task in suite.tasks if task.form is None)})


def _lm_eval(model: Path, suite: Suite, output: Path) -> list[object]:
    """The command's words. It writes samples, as ours does."""
    folders = [word for folder in suite.folders for word in ("--include_path", folder)]
    names = ",".join(task.name for task in suite.tasks)
    return [
        *("lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model},dtype={suite.dtype}"),
        *("--device", "cpu", "--batch_size", suite.batch_size, "--tasks", names, *folders),
        *("--metadata", json.dumps(suite.data), "--output_path", output, "--log_samples"),
    ]


def _compare(ours: Path, theirs: Path) -> int:
    """How many scores agree; raises UserError for one that does not."""
    [path] = theirs.rglob("results_*.json")
    found = json.loads((ours / "results.json").read_text(encoding="utf8"))["results"]
    compared = 0
    for task, scores in json.loads(path.read_text(encoding="utf8"))["results"].items():
        for key, value in scores.items():
            name = f"eval/{task}/{key.partition(',')[0]}"
            if name in found:
                compared += 1
                if abs(found[name] - value) > AGREE * abs(value):
                    raise UserError(f"{name}: {found[name]} here, {value} by lm-eval's command; the sides do unlike work")
    return compared


def _render(
    options: argparse.Namespace, arguments: Sequence[str], suite: Suite, seconds: dict[str, list[float]], compared: int
) -> str:
    threads = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} " if "OMP_NUM_THREADS" in os.environ else ""
    shared = len(_shared(suite).tasks)
    lines = [
        "# What a suite costs",
        "",
        f"    {threads}python -m benchmarks.evaluation_run {shlex.join(arguments)}",
        "",
        f"- Machine: {cpu_model()}; {suite.dtype}, batches of {suite.batch_size}.",
        f"- Versions: {versions(PACKAGES)}.",
        f"- Suite: `{options.suite}`, {len(suite.tasks)} tasks, of which lm-eval's command has {shared}.",
        f"- Measured: {options.repeats} repeats, the sides in turns, each from the start of a process to its end, scores and "
        "samples written. Medians, with the lowest and the highest.",
        f"- Scores: all {compared} that both sides give agree to {AGREE:g}.",
        "- On GPUs not yet measured.",
        "",
        "| | seconds |",
        "|---|---|",
        *(f"| {SIDES[side]} | {spread(values, '{:.1f}')} |" for side, values in seconds.items()),
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
