"""Draws a run from its metrics.jsonl: loss with held-out losses and stages, and the learning rate below it.

python -m smol_train.plot runs/quickstart/run --output loss.png
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smol_config import UserError
from smol_console import exit_code
from smol_train.callbacks.metrics import METRICS_NAME


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, one step each; raises UserError when there are none."""
    path = run / METRICS_NAME
    if not path.is_file() or not path.stat().st_size:
        raise UserError(f"{path} is missing or empty; give the train.output_dir of a run that has trained a step")
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def draw(run: Path, output: Path) -> None:
    """Write the picture; its format follows the file's ending."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(run)
    steps = [line["step"] for line in lines]
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True, height_ratios=[3, 1], layout="constrained")
    top.plot(steps, [line["train/loss"] for line in lines], linewidth=1, label="training")
    for name in sorted({name for line in lines for name in line if name.startswith("eval/loss/")}):
        points = [(line["step"], line[name]) for line in lines if name in line]
        top.plot(*zip(*points, strict=True), marker="o", label=f"held-out {name.removeprefix('eval/loss/')}")
    starts = [line for before, line in itertools.pairwise(lines) if line["stage"] != before["stage"]]
    for line in [lines[0], *starts]:
        for axes in (top, bottom):
            axes.axvline(line["step"], color="grey", linewidth=0.8, linestyle=":")
        top.annotate(f" {line['stage']}", (line["step"], 1), xycoords=("data", "axes fraction"), va="top", color="grey")
    top.set_ylabel("loss (nats per token)")
    top.legend()
    top.grid(alpha=0.3)
    bottom.plot(steps, [line["train/learning_rate"] for line in lines], color="tab:green")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    bottom.grid(alpha=0.3)
    top.set_title(f"{run.name}: {lines[-1]['tokens']:,} tokens in {steps[-1]:,} steps")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m smol_train.plot", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run's folder (train.output_dir)")
    parser.add_argument("--output", type=Path, help="picture to write; RUN/loss.png by default")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options.run, options.output or options.run / "loss.png"))


def _run(run: Path, output: Path) -> None:
    draw(run, output)
    print(f"written: {output}")


if __name__ == "__main__":
    sys.exit(main())
