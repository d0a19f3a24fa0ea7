"""A sweep's runs planned, trained, exported and scored: each step a command of this repository, in a process of its own.

    pretrain_smol.py --dry-run --json   what a configuration means (steps, parameters), or why it cannot be trained
    torch.distributed.run pretrain_smol.py          one run after the other on this machine
    slurm/submit.sh --once pretrain     each run a job; a later call submits anew what was lost, and collects
    conversion to-hf                    the final checkpoint's export
    evaluation.run.run                  its scores, in a child, whose end for want of memory costs those scores alone

A recipe of post-training takes pretrain_smol.py's place, with the same options, and exports itself (kinds.py). The launcher
hides exit codes, so what became of a run is read from its folder (run_folder.py).
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from conversion import background
from evaluation.ablations.kinds import REPOSITORY
from evaluation.ablations.run_folder import (
    LOG_NAME,
    final_checkpoint,
    last_line,
    last_step,
    newest_checkpoint,
    outcome,
    tokens_trained,
)
from evaluation.ablations.sweep import Arm, Run
from evaluation.suite import Suite
from smol_config import UserError, load_mapping
from smol_console import Progress
from smol_process import end_with

LOOK_SECONDS = 0.5

Plan = dict[str, Any]
"""Of smol_train.plan or post_training.recipes.plan: parameters, train_steps, train_tokens, config, and more. Steps and tokens
of a recipe are None where its data decides."""


class Interrupted(Exception):
    """A signal asked for an end; what was trained is saved."""


def plan(arm: Arm) -> Plan:
    """What the arm's configuration means. Raises UserError, in the trainer's words, where it cannot be trained."""
    load_mapping(arm.base, arm.overrides)  # environment variables that are not set, which a plan does without
    command = [sys.executable, *arm.kind.command, "--config", str(arm.base), "--dry-run", "--json", *arm.overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr.strip() or f"exit code {done.returncode}").removeprefix("error: ")
        raise UserError(f"{arm.name}: {told}")
    return dict(json.loads(done.stdout))


# --- on this machine -------------------------------------------------------------------------------------------------------


def train_all(runs: Sequence[tuple[Run, int | None]], tokens: int | None, processes: int) -> None:
    """Train each run of (run, steps) that is not over, one after the other; `tokens` is what all are to train on together, None
    where that is not known.

    A run is started again as long as each start brings a new checkpoint. Raises Interrupted after SIGTERM or SIGINT, when the
    run at hand has saved.
    """
    todo = [(run, steps) for run, steps in runs if outcome(run.folder, steps, run.kind).state in ("waiting", "failed")]
    left = None if tokens is None else max(tokens - sum(tokens_trained(run.folder) for run, _ in runs), 0)
    with _signals() as came, Progress("training", "tokens", left) as progress:
        for number, (run, steps) in enumerate(todo, 1):
            print(f"{number} of {len(todo)}: {run.arm}, seed {run.seed}; log {run.folder / LOG_NAME}", flush=True)
            _train(run, steps, processes, progress, came)
            if came:
                raise Interrupted


def launcher(processes: int) -> list[str]:
    """The command that starts a script, or -m and a module, on so many ranks of this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def _train(run: Run, steps: int | None, processes: int, progress: Progress, came: list[int]) -> None:
    command = [*launcher(processes), *run.kind.command, "--config", str(run.write_config())]
    # Were this process killed, the ranks would go on unseen and hold the run's folder. In a session of their own they do not
    # hear a terminal's Ctrl-C twice, which would end them before they have saved.
    stop_too = functools.partial(end_with, os.getpid(), signal.SIGTERM)
    trained = tokens_trained(run.folder)
    while outcome(run.folder, steps, run.kind).state in ("waiting", "failed"):
        before = newest_checkpoint(run.folder)
        with (run.folder / LOG_NAME).open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=stop_too
            )
            while process.poll() is None:
                time.sleep(LOOK_SECONDS)
                now = max(tokens_trained(run.folder), trained)  # fewer after a rollback
                progress.advance(now - trained)
                trained = now
                if came:
                    process.terminate()
                    process.wait()
        if came or newest_checkpoint(run.folder) == before:
            return


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that came, which do nothing else meanwhile."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda sent, _: came.append(sent)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- on a cluster ----------------------------------------------------------------------------------------------------------


def submit(run: Run) -> str:
    """Submit the run's training unless a job of it waits or runs; returns what is told. Raises UserError when Slurm refuses."""
    job, *options = run.kind.job
    command = ["bash", str(REPOSITORY / "slurm" / "submit.sh"), "--once", job, str(run.write_config()), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{run.arm}, seed {run.seed}: {done.stderr.strip().removeprefix('error: ')}")
    return f"{run.arm}, seed {run.seed}: {done.stdout.partition(chr(10))[0]}"


# --- scores ----------------------------------------------------------------------------------------------------------------


def check_scores(run: Run, suite: Suite) -> None:
    """Raises UserError when the run has scores of another suite."""
    path = run.folder / "scores" / "results.json"
    if path.is_file():
        made = json.loads(path.read_text(encoding="utf8"))["suite"]
        if made != suite.model_dump(mode="json", exclude_none=True):
            raise UserError(f"{path.parent} was made with another suite; move it away to have the run scored anew")


def score(run: Run, steps: int | None, suite: Suite) -> str:
    """Export the run's final checkpoint and score it, as far as that was not done; returns what is missing, or nothing."""
    last = last_step(run.folder, steps)
    scores, export = run.folder / "scores", run.folder / "hf" / f"step_{last}"
    if run.kind.exports and not export.is_dir():
        print(f"exporting {run.arm}, seed {run.seed}", flush=True)
        export.parent.mkdir(exist_ok=True)
        with (run.folder / "export.log").open("wb") as log:
            command = [sys.executable, "-m", "conversion", "to-hf", str(final_checkpoint(run.folder, last)), str(export)]
            done = subprocess.run(command, stdout=log, stderr=log, check=False)
        if done.returncode:
            return f"not exported: {last_line(run.folder / 'export.log')}"
    if not scores.is_dir():
        print(f"scoring {run.arm}, seed {run.seed}", flush=True)
        for partial in run.folder.glob("scores.partial-*"):  # of one that was killed
            shutil.rmtree(partial, ignore_errors=True)
        threads = len(os.sched_getaffinity(0))
        try:
            background.call(_run_suite, export, suite, scores, threads=threads, stop=lambda: False)
        except UserError as error:
            return f"not scored: {error}"
    not_run = json.loads((scores / "results.json").read_text(encoding="utf8"))["not_run"]
    return "; ".join(f"{name} not run: {reason}" for name, reason in not_run.items())


def _run_suite(export: Path, suite: Suite, output: Path) -> None:
    from evaluation.run import run  # loads the heavy libraries, in the child

    run(export, suite, suite.selected("development"), output, None)
