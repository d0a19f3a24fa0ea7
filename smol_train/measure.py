"""The best layouts of a search, timed: 20 steps each of the real trainer on this node's ranks. plan.py --search --measure.

    search's ranking -> one torchrun a layout -> this module's main() on every rank -> metrics.jsonl -> tokens/s

Data are the configuration's own, in its order; nothing is evaluated, saved or kept. Several nodes are out of its reach.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from smol_config import ConfigError, Section, load, to_yaml
from smol_console import exit_code
from smol_train.config import RunConfig
from smol_train.gpus import GPUS_PER_NODE
from smol_train.search import Layout, Search, apply, best_micro_batches
from smol_train.short_run import shortened

STEPS, WARMUP = 20, 5
LAYOUTS = 3


class Measured(Section):
    """A layout as predicted and as it ran."""

    layout: Layout
    predicted: float
    """Tokens per second and GPU."""
    measured: float | None
    """The same, median of the steps after the warm-up; None where it failed."""
    failure: str = ""
    """Last line of what it said."""


def measure(config: RunConfig, found: Search, layouts: int = LAYOUTS) -> list[Measured]:
    """Time the fastest micro-batch of each of the `layouts` first in the ranking. Raises ConfigError for several nodes."""
    if found.gpus > GPUS_PER_NODE:
        raise ConfigError(
            f"--measure with gpus={found.gpus} needs more ranks than one node's {GPUS_PER_NODE}; lower --gpus or leave it out"
        )
    first = best_micro_batches(found.ranked)[:layouts]
    return [measure_layout(config, found.gpus, one.layout, one.speed.tokens_per_second_per_gpu) for one in first]


def short_run(config: RunConfig, layout: Layout, folder: Path) -> RunConfig:
    """`config` laid out as `layout`, STEPS steps of its first stage with the full batch, into `folder`."""
    return shortened(apply(config, layout), STEPS, folder / "run")


def measure_layout(config: RunConfig, ranks: int, layout: Layout, predicted: float) -> Measured:
    """Time one layout on `ranks` ranks of this node."""
    with tempfile.TemporaryDirectory(prefix="smol_measure_") as name:
        folder = Path(name)
        run = short_run(config, layout, folder)
        (folder / "run.yaml").write_text(to_yaml(run), encoding="utf8")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [*launcher, "-m", "smol_train.measure", str(folder / "run.yaml")],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "rror" in line] or done.stderr.splitlines() or ["no output"]
            return Measured(layout=layout, predicted=predicted, measured=None, failure=errors[0].strip())
        lines = [json.loads(line) for line in (Path(run.train.output_dir) / "metrics.jsonl").read_text("utf8").splitlines()]
        rates = [line["perf/tokens_per_second_per_device"] for line in lines if line["step"] > WARMUP]
        return Measured(layout=layout, predicted=predicted, measured=median(rates))


def render(measured: list[Measured]) -> str:
    """One line a layout, fastest measured first."""
    lines = [f"measured here, {STEPS} steps each, the first {WARMUP} left out:"]
    for one in sorted(measured, key=lambda one: -(one.measured or 0.0)):
        speed = f"{one.measured:,.0f} tokens/s a GPU" if one.measured else f"failed: {one.failure}"
        lines.append(f"    {one.layout.name()}: {speed} (predicted {one.predicted:,.0f})")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """One rank of one layout: the trainer with its metrics and nothing else."""
    parser = argparse.ArgumentParser(prog="python -m smol_train.measure", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", type=Path, help="the short run that --measure wrote")
    path = parser.parse_args(arguments).config
    return exit_code(lambda: _run(path))


def _run(path: Path) -> int:
    from smol_train.callbacks.metrics import MetricsWriter
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    config = load(RunConfig, path)
    with process_groups(config.parallel, config.train.seed) as ranks:
        return Trainer(config, ranks, [MetricsWriter()]).fit()


if __name__ == "__main__":
    sys.exit(main())
