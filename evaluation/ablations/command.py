"""`ablate`: train what is left of a sweep's round, score it, say what each change did; `--promote` names the winner.

    Sweep --current_round--> runs --trainer.py--> trained, exported, scored --report.py--> OUTPUT

Everything that was done before stays done: the same command goes on where the last one was killed.
"""

import argparse
import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluation.ablations import report, trainer
from evaluation.ablations.promote import promote
from evaluation.ablations.run_folder import Outcome, outcome
from evaluation.ablations.sweep import Round, Run, Sweep, current_round, load_sweep
from evaluation.suite import Suite, load_suite
from smol_config import UserError
from smol_console import add_command, shown


def ablate(options: argparse.Namespace) -> int:
    """0 when every run of the round has come to its end, also a diverged one; 1 while some have failed or wait.

    Raises UserError, with nothing trained, for a sweep, suite or configuration that cannot be used.
    """
    sweep = load_sweep(options.sweep, tuple(options.overrides))
    suite = load_suite(sweep.suite, sweep.suite_overrides) if sweep.suite else None
    current = current_round(sweep)
    plans = {arm.name: trainer.plan(arm) for arm in shown(current.arms, "planning", "arms")}
    _check_scores(sweep, suite, plans)
    for run in current.runs:
        run.check()
        if suite:
            trainer.check_scores(run, suite)
    if options.promote:
        return _promote(sweep, current, plans, options)
    with _alone(sweep.output):
        return _go_on(sweep, suite, current, plans, options)


def _go_on(sweep: Sweep, suite: Suite | None, current: Round, plans: dict[str, trainer.Plan], options: Any) -> int:
    steps = _steps(current, plans)
    for run in current.runs:
        run.write_config()  # before the first is trained: what is edited meanwhile changes none of them
    if options.slurm:
        for run in current.runs:
            if outcome(run.folder, steps[run.arm], run.kind).state in ("waiting", "failed"):
                print(trainer.submit(run), flush=True)
    else:
        tokens = [plans[run.arm]["train_tokens"] for run in current.runs]
        total = None if None in tokens else sum(tokens)
        try:
            trainer.train_all([(run, steps[run.arm]) for run in current.runs], total, sweep.processes)
        except trainer.Interrupted:
            print("stopped, and saved; the same command goes on", flush=True)
            return 1
    reasons = {}
    for run in current.runs:
        if suite and outcome(run.folder, steps[run.arm], run.kind).state == "done":
            reasons[run.folder] = trainer.score(run, steps[run.arm], suite)
    outcomes = {
        arm.name: [(run, _outcome(run, steps[arm.name], reasons.get(run.folder, ""))) for run in arm.runs]
        for arm in current.arms
    }
    record = report.results(current, plans, outcomes, _higher_is_better(outcomes), options.sweep)
    report.write(current.folder, record)
    print(f"\n{report.text(record)}\n\nwrote {current.folder}/results.json, table.md and report.html", flush=True)
    print(_next(current, options.sweep))
    states = {one.state for of_arm in outcomes.values() for _, one in of_arm}
    return 1 if states & {"failed", "waiting"} or any(reasons.values()) else 0


def _steps(current: Round, plans: dict[str, trainer.Plan]) -> dict[str, int | None]:
    """By arm; None where the run tells when it is done."""
    return {arm.name: int(plans[arm.name]["train_steps"]) if arm.kind.exports else None for arm in current.arms}


def _outcome(run: Run, steps: int | None, reason: str) -> Outcome:
    """With why it could not be exported or scored, or only in part."""
    found = outcome(run.folder, steps, run.kind)
    return Outcome(found.state, reason, found.numbers, found.scores) if reason else found


def _higher_is_better(outcomes: report.Outcomes) -> dict[str, bool]:
    higher: dict[str, bool] = {}
    for of_arm in outcomes.values():
        for run, _ in of_arm:
            higher |= run.kind.held_out
            with contextlib.suppress(FileNotFoundError):
                higher |= json.loads((run.folder / "scores" / "results.json").read_text(encoding="utf8"))["higher_is_better"]
    return higher


def _check_scores(sweep: Sweep, suite: Suite | None, plans: dict[str, trainer.Plan]) -> None:
    if suite and not suite.selected("development"):
        raise UserError(f"suite {sweep.suite} has no task with use: development, by which changes are judged; add one")
    without = [name for name, plan in plans.items() if not plan["config"]["data"].get("held_out")]
    if without and not suite:
        raise UserError(f"{', '.join(without)}: no data.held_out and no suite, so nothing would be compared; give one of them")


def _promote(sweep: Sweep, current: Round, plans: dict[str, trainer.Plan], options: Any) -> int:
    steps = _steps(current, plans)
    finished = {run.arm for run in current.runs if outcome(run.folder, steps[run.arm], run.kind).state == "done"}
    print(f"wrote {promote(sweep, current, options.promote, finished)}")
    after = current_round(sweep)
    if not after.promoted:
        print(f"round {after.number}: {', '.join(arm.name for arm in after.changes)} on {after.baseline.name}")
    return 0


def _next(current: Round, sweep: Path) -> str:
    if current.promoted:
        return f"decided: {current.promoted}"
    return f"choose with: python -m evaluation ablate {sweep} --promote {'|'.join(arm.name for arm in current.arms)}"


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """One call at a time works on a sweep; raises UserError for the second."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{output} is in use by another call of ablate; wait until it has ended") from None
        yield


def add_parser(commands: Any) -> None:
    """The parser of `ablate`."""
    command = add_command(
        commands,
        "ablate",
        "Train a baseline and single changes to it, score them, and say which differ by more than seeds do.",
        "python -m evaluation ablate configs/ablations/tiny/ordered.yaml\n"
        "  python -m evaluation ablate configs/ablations/tiny/ordered.yaml --promote tied",
    )
    command.add_argument(
        "sweep", metavar="SWEEP.yaml", type=Path, help="baseline, changes, seeds; key=value replaces a setting of it"
    )
    command.add_argument("--slurm", action="store_true", help="submit each run as a job; a later call collects what is done")
    command.add_argument("--promote", metavar="NAME", help="make this arm the next baseline, and train nothing")
    command.set_defaults(run=ablate)
