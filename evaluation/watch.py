"""`watch RUN`: every exported checkpoint of a run is evaluated once, on one machine, while the run trains.

    RUN/hf/step_N --run.py, in a child that gives way to training--> RUN/evaluations/SUITE/step_N
        --report.py--> RUN/tensorboard/evaluations, evaluations_by_tokens, SUITE/scores.png, SUITE/behind.json, alerts
    with --vibe: --vibe.py--> RUN/evaluations/vibe/step_N.json --> RUN/evaluations/vibe.html, a column a checkpoint

What is done is on disk, so a watcher may be killed and started again at any time: a folder of results gets its name when it is
whole, TensorBoard gets each number once. On a cluster slurm/evaluations.py submits a job for each checkpoint instead; both take
exports from conversion/export_records.py and report by report.py.
"""

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conversion import background
from conversion.export_records import UNKNOWN, export_name, exported, step_of_export, to_be_exported
from conversion.service import Stop, say, stop_signals
from conversion.watching import Tell, alerts_to, append_line, read_lines, rounds, sole_worker, telling, wait_for
from evaluation.reference import load_references, read_records
from evaluation.report import Report
from evaluation.suite import Suite, SuiteTask, load_suite
from evaluation.vibe import PROMPTS, Column, ask, load_vibe, page
from smol_config import UserError
from smol_console import add_command, whole_number
from smol_files import write_json, write_whole

STARTED_NAME = "watch.jsonl"
"""In SUITE: of which checkpoint (digest) each step's evaluation is, since a run that rolled back saves steps anew."""


def watch(options: argparse.Namespace) -> int:
    """The command: 0; 1 where tasks could not be reached.

    Raises UserError for bad input, for a folder with another suite's scores, where another watcher works, and at the end when
    something could not be evaluated.
    """
    run: Path = options.run_folder
    if (run / "config.json").is_file() or (run.exists() and not run.is_dir()):
        raise UserError(f"{run} is not a run's folder; give train.output_dir of a run, whose exports are in hf/step_N")
    if options.once and not run.exists():
        raise UserError(f"{run} is not there; give train.output_dir of a run")
    suite = load_suite(options.suite, options.overrides)
    if not (asked := suite.selected("development")):
        raise UserError(f"{options.suite}: no task has use: development; those for reports are for the finished model: `run`")
    load_references(options.reference)  # refused before anything is waited for
    alerts = alerts_to(_webhook(options.webhook))
    folder = run / "evaluations" / options.suite.stem
    with stop_signals() as stop:
        if not wait_for(run, options.every, stop):
            return 0
        with sole_worker(folder / "watch.lock", "a watcher"), telling(run, alerts) as tell:
            return Watcher(run, folder, suite, asked, options, stop, tell).work()


def _webhook(variable: str | None) -> str | None:
    """The URL in an environment variable: on a command line everybody would read it."""
    if variable and not os.environ.get(variable):
        raise UserError(f"--webhook {variable}: not set in the environment; export {variable}=https://... first")
    return os.environ[variable] if variable else None


class Watcher:
    """The one watcher of a run and a suite, which holds its lock."""

    def __init__(
        self,
        run: Path,
        folder: Path,
        suite: Suite,
        asked: Sequence[SuiteTask],
        options: argparse.Namespace,
        stop: Stop,
        tell: Tell,
    ) -> None:
        self.run, self.folder, self.suite, self.asked = run, folder, suite, asked
        self.options, self.stop = options, stop
        self.report = Report(run, folder, options.reference, tell)
        self.started: dict[int, str] = {line["step"]: line["checkpoint"] for line in read_lines(folder / STARTED_NAME)}
        """Step -> digest."""
        self.failed: dict[tuple[int, str], str] = {}
        """(step, digest) -> why; tried again when the watcher is started again."""
        self.vibe = load_vibe(PROMPTS)
        self._check_suite()

    def work(self) -> int:
        """Until the run is done and all its checkpoints are evaluated, or once what is there now."""
        self._clean_up()
        say(f"evaluating the exports of {self.run} on {self.options.suite}")
        self.report.make(read_records(self.folder))  # what a kill left undone
        if self.options.vibe:
            self._write_page()
        try:
            for _ in rounds(self.run, self.options.every, self.options.once, self._waiting, self.stop):
                for step, digest in exported(self.run).items():
                    if self._is_due(step, digest):
                        self._evaluate(step, digest)
                    if self.options.vibe:
                        self._talk(step, digest)
        except background.Stopped:
            self._clean_up()
            say("stopped")
            return 0
        if self.failed:
            told = "; ".join(f"{export_name(step)}: {why}" for (step, _), why in self.failed.items())
            raise UserError(f"{len(self.failed)} not evaluated: {told}; started again, watch tries again")
        say("all exports are evaluated")
        return int(any(record["not_run"] for record in read_records(self.folder)))

    def _check_suite(self) -> None:
        """Scores of one folder are one curve: they must be of one suite."""
        ours = self.suite.model_dump(mode="json", exclude_none=True)
        for record in read_records(self.folder):
            if record["suite"] != ours:
                raise UserError(
                    f"{record['folder']} was scored with other settings than {self.options.suite} has now; give the changed "
                    "suite a name of its own, or remove that folder"
                )

    def _clean_up(self) -> None:
        """Remove what a killed evaluation left."""
        for partial in self.folder.glob("step_*.partial-*"):
            shutil.rmtree(partial, ignore_errors=True)

    def _is_due(self, step: int, digest: str) -> bool:
        if (step, digest) in self.failed:
            return False
        there = (self.folder / export_name(step)).exists()
        return not there or (digest != UNKNOWN and self.started.get(step, digest) not in (UNKNOWN, digest))

    def _waiting(self) -> list[int]:
        """What the run's end is waited out for."""
        due = [step for step, digest in exported(self.run).items() if self._is_due(step, digest)]
        return [*to_be_exported(self.run), *due]

    def _evaluate(self, step: int, digest: str) -> None:
        folder = self.folder / export_name(step)
        if folder.exists():
            say(f"step {step} was saved and exported again since it was evaluated: {folder} is made anew")
            self._forget(step)
            shutil.rmtree(folder)
        append_line(self.folder / STARTED_NAME, {"step": step, "checkpoint": digest})
        self.started[step] = digest
        model = self.run / "hf" / export_name(step)
        try:
            record = self._in_child(_score, model, self.suite, self.asked, folder)
        except UserError as error:
            self.failed[step, digest] = str(error)
            say(f"{model} is NOT evaluated: {error}")
            return
        for task, reason in record["not_run"].items():
            say(f"step {step}: not run: {task}: {reason}")
        say(f"step {step}: {', '.join(f'{name} {value:.4g}' for name, value in record['results'].items())}")
        self.report.make(read_records(self.folder))

    def _talk(self, step: int, digest: str) -> None:
        """Ask a checkpoint what vibe.yaml asks, and make the page of all."""
        path = self._answers(step)
        if path in dict(self._asked_already()) or (step, digest) in self.failed:
            return
        model = self.run / "hf" / export_name(step)
        try:
            column = self._in_child(ask, model, self.vibe)
        except UserError as error:
            self.failed[step, digest] = str(error)
            say(f"{model} is NOT asked: {error}")
            return
        path.parent.mkdir(exist_ok=True)
        write_json(path, {**column, "model": export_name(step)})
        self._write_page()
        say(f"step {step}: its answers are in {self.run / 'evaluations' / 'vibe.html'}")

    def _asked_already(self) -> list[tuple[Path, Column]]:
        """Answers to the words that are asked now, by step."""
        paths = sorted((self.run / "evaluations" / "vibe").glob("step_*.json"), key=step_of_export)
        columns = [(path, json.loads(path.read_text(encoding="utf8"))) for path in paths]
        return [(path, column) for path, column in columns if column["asked"] == self.vibe.model_dump(mode="json")]

    def _write_page(self) -> None:
        if columns := [column for _, column in self._asked_already()]:
            write_whole(self.run / "evaluations" / "vibe.html", page(self.vibe, columns))

    def _answers(self, step: int) -> Path:
        return self.run / "evaluations" / "vibe" / f"{export_name(step)}.json"

    def _in_child(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return background.call(_without_gpus, function, *arguments, threads=self.options.threads, stop=self.stop)

    def _forget(self, step: int) -> None:
        """What was made of an export that is no more."""
        self._answers(step).unlink(missing_ok=True)
        self.report.forget(export_name(step))


# --- in a child, which loads the heavy libraries -----------------------------------------------------------------------------


def _without_gpus(function: Callable[..., Any], *arguments: Any) -> Any:
    """GPUs belong to the ranks that train: one is used only when it was named."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    return function(*arguments)


def _score(model: Path, suite: Suite, asked: Sequence[SuiteTask], output: Path) -> dict[str, Any]:
    from evaluation.run import run

    return run(model, suite, asked, output, subset=None)


# --- the command -----------------------------------------------------------------------------------------------------------


def add_parser(commands: Any) -> None:
    """The parser of `watch`."""
    command = add_command(
        commands,
        "watch",
        "Evaluate every exported checkpoint of a run once, while it trains; scores go into its TensorBoard.",
        "python -m evaluation watch runs/smol --suite evaluation/suites/offline.yaml --reference w=runs/w/evaluations/offline",
    )
    command.add_argument("run_folder", metavar="RUN", type=Path, help="the run's folder; it may not be there yet")
    command.add_argument("--suite", metavar="S.yaml", type=Path, required=True, help="as of run; key=value replaces a setting")
    command.add_argument("--every", type=whole_number(1), default=60, metavar="SECONDS", help="between two looks (default 60)")
    command.add_argument("--once", action="store_true", help="end after the exports that are there now")
    command.add_argument(
        "--reference",
        metavar="NAME=PLACE",
        action="append",
        default=[],
        help="drawn beside: results by step, or published scores as JSON; may be given again",
    )
    command.add_argument("--webhook", metavar="VARIABLE", help="environment variable with the URL that is told what is behind")
    command.add_argument("--vibe", action="store_true", help="ask each checkpoint what vibe asks: RUN/evaluations/vibe.html")
    command.add_argument("--threads", type=whole_number(1), default=2, metavar="N", help="for arithmetic (default 2)")
    command.set_defaults(run=watch)
