"""All runs of a folder on a page: owner, job, step, loss, speed, time left, GPU-hours, goodput, what differs, the last event.

    python -m slurm.status RUN_ROOT           bash slurm/status.sh [RUN_ROOT]

Everything is read from the runs' folders, and the state of their jobs from one squeue; without Slurm that is "unknown". A run
is a folder, at any depth up to three, that holds slurm/code (it was submitted) or metrics.jsonl (it has trained).
"""

import argparse
import contextlib
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.history import METRICS_NAME, History, Line, read_alerts, read_history, tail
from slurm.incidents import duration, gpu_hours, wall_time
from slurm.scheduler import Job, Slurm, Submission, submissions, training
from slurm.watch_checks import seconds_left
from smol_config import ConfigError, UserError, load
from smol_console import exit_code, percent, short, table
from smol_train.config import RunConfig

DEPTH = 3
MOST_BYTES = 200_000_000
"""Of metrics.jsonl, beyond which goodput is left to `python -m slurm.incidents RUN`: it needs every line."""
WIDTH = 118
MOST_DIFFERENCES = 6

HEADER = ("run", "owner", "job", "step", "loss", "tokens/s", "left", "GPU-hours", "goodput")


@dataclass(frozen=True)
class Status:
    """Of one run."""

    name: str
    row: tuple[str, ...]
    differs: list[str]
    last: str
    gpu_hours: dict[str, float]


def find_runs(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The runs below a folder, or the folder itself where it is one; none inside a run, nor where others may not look."""
    with contextlib.suppress(PermissionError):
        if (root / METRICS_NAME).exists() or (root / "slurm" / "code").is_dir():
            yield root
        elif depth and root.is_dir():
            for path in sorted(root.iterdir()):
                yield from find_runs(path, depth - 1)


def status(run: Path, root: Path, jobs: list[Job] | None, now: float) -> Status:
    """What the page says of a run. `jobs` is the queue; None: not known."""
    metrics = tail(run)
    size = sum(path.stat().st_size for path in run.glob("metrics*.jsonl"))
    history = read_history(run, with_steps=size <= MOST_BYTES)
    newest, total = training(submissions(run)), None
    differs = newest.folder / "differs" if newest else None
    with contextlib.suppress(ConfigError):  # of another version of the code
        total = load(RunConfig, newest.config, keep_unset=True).train_steps if newest else None
    hours = gpu_hours(history)
    goodput = wall_time(history, now).goodput if history.training and history.steps else None
    name = str(run.relative_to(root)) if run != root else run.name
    alerts = read_alerts(run)
    last = alerts[-1] if alerts else None
    row = (
        name,
        _owner(run),
        _state(newest, history, jobs),
        *_progress(metrics, total),
        f"{sum(hours.values()):,.0f}" if hours else "-",
        "-" if goodput is None else percent(goodput),
    )
    return Status(
        name=name,
        row=row,
        differs=differs.read_text(encoding="utf8").splitlines() if differs and differs.is_file() else [],
        last=f"{time.strftime('%F %R', time.gmtime(last.time))} {last.event}: {last.text}" if last else "",
        gpu_hours=hours,
    )


def page(found: Sequence[Status]) -> str:
    """The table, two lines for each run, and the GPU-hours by purpose."""
    parts = [table(HEADER, [one.row for one in found], left=3), ""]
    for one in found:
        shown = [text for text in one.differs if not text.startswith("train.output_dir=")]
        more = f", and {len(shown) - MOST_DIFFERENCES} more" if len(shown) > MOST_DIFFERENCES else ""
        told = [f"differs: {', '.join(shown[:MOST_DIFFERENCES])}{more}"] if shown else []
        told += [one.last] if one.last else []
        parts += [one.name, *(textwrap.indent(textwrap.fill(text, WIDTH - 2), "  ") for text in told)] if told else []
    hours: dict[str, float] = {}
    for one in found:
        for purpose, count in one.gpu_hours.items():
            hours[purpose] = hours.get(purpose, 0.0) + count
    if hours:
        rows = [(purpose, f"{count:,.0f}") for purpose, count in sorted(hours.items())]
        parts += ["", table(("purpose", "GPU-hours"), rows)]
    return "\n".join(parts).rstrip()


def _owner(run: Path) -> str:
    try:
        return run.owner()
    except KeyError:  # of a user that this host does not know
        return str(run.stat().st_uid)


def _state(newest: Submission | None, history: History, jobs: list[Job] | None) -> str:
    """Of the training job, in a word."""
    if newest is None:
        return "none"
    mine = [job.state for job in jobs or [] if job.name == newest.name]
    if mine:
        return ("RUNNING" if "RUNNING" in mine else mine[0]).lower()
    last = next((one.next for one in reversed(history.training) if one.chain == newest.chain), None)
    if last in ("done", "stop"):
        return {"done": "done", "stop": "stopped"}[last]
    return "unknown" if jobs is None else "ended"


def _progress(metrics: list[Line], total: int | None) -> tuple[str, str, str, str]:
    """Step, loss, speed, time left."""
    of = f"/{total:,}" if total else ""
    if not metrics:
        return f"0{of}", "-", "-", "-"
    last = metrics[-1]
    loss, left = last.get("train/loss"), seconds_left(metrics, total) if total else None
    return (
        f"{last['step']:,}{of}",
        "-" if loss is None else f"{loss:.3f}",
        short(speed) if (speed := last.get("perf/tokens_per_second")) else "-",
        "-" if left is None else duration(left),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.status", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path, metavar="RUN_ROOT", help="a folder of runs, or one run")
    root = parser.parse_args(arguments).root
    return exit_code(lambda: _run(root))


def _run(root: Path) -> None:
    if not (runs := list(find_runs(root))):
        raise UserError(f"there are no runs in {root}; give the folder under which runs have their train.output_dir")
    jobs = Slurm().jobs()
    print(page([status(run, root, jobs, time.time()) for run in runs]))


if __name__ == "__main__":
    sys.exit(main())
