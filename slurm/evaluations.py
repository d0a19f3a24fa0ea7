"""The evaluation of every checkpoint: one job each, submitted once, and its scores reported as `evaluation watch` does.

    python -m slurm.evaluations CONFIG [--watch] [--retry-failed] [section.key=value ...]       in a job: slurm/jobs/evaluate.sh

    RUN/hf/step_N, exported  and  RUN/uploads/iter_N.json, where checkpoint.upload is set
        --sbatch evaluate_step.sh--> RUN/evaluations/KEY.json, KEY/ --> RUN/evaluations.jsonl
        --evaluation/report.py, beside SMOL_EVALUATE_REFERENCES--> RUN/tensorboard, RUN/evaluations/scores.png, alerts

KEY is the step and the beginning of the checkpoint's digest, since a run that rolled back saves steps anew. It is in the
job's name too, so that Slurm can tell whether a job was submitted whose number is not noted (evaluation_jobs.py).

A job waits for no other by --dependency, which an upload job that lasts as long as the run could not serve. It is submitted
when export and upload are on disk, verified: so it depends on what they made, whoever made it, and holds no place in the
queue before.
"""

import argparse
import contextlib
import json
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import smol_progress
from conversion import ConversionError, background
from conversion.export_records import UNKNOWN, Records, export_name, exported
from conversion.service import Later, Stop, say
from conversion.watching import Tell, read_lines, rounds, telling
from evaluation.reference import load_references
from evaluation.report import Report
from slurm.evaluation_jobs import Evaluation, EvaluationJobs
from slurm.service import parser_for, service_exit_code, work_beside
from smol_config import UserError, load
from smol_files import write_whole
from smol_train.checkpoint_folder import read_note, step_of, whole_checkpoints
from smol_train.config import RunConfig

RESULTS_NAME = "evaluations.jsonl"
NO_NUMBERS = 'no numbers; the command of SMOL_EVALUATE must write {"results": {NAME: NUMBER}}'


class Evaluations:
    """The one process that submits a run's evaluations and takes their results, and holds the lock for it."""

    def __init__(self, run: Path, uploads: bool, references: Sequence[str], every: float, stop: Stop, tell: Tell) -> None:
        self.run, self.uploads, self.every, self.stop = run, uploads, every, stop
        self.report = Report(run, run / "evaluations", references, tell)
        self.to_report = True
        """Whether there may be what a kill, or a reference that could not be read, left undone."""
        self.jobs = EvaluationJobs(run)
        self.later = Later(every)
        self.results: dict[int, dict[str, float]] = {line.pop("step"): line for line in read_lines(run / RESULTS_NAME)}
        """By step, as far as they have been taken."""

    def work(self, once: bool) -> None:
        """Until the run is done and all its checkpoints are evaluated, or once what is due now; raises ConversionError at the
        end when some are not."""
        say(f"evaluating the checkpoints of {self.run} as they are exported{' and uploaded' if self.uploads else ''}")
        try:
            for _ in rounds(self.run, self.every, once, self._waiting, self.stop):
                self._round()
        except background.Stopped:
            say("stopped")
            return
        if failed := self.jobs.failed():
            raise ConversionError(f"{len(failed)} not evaluated: {'; '.join(failed)}; --retry-failed tries it again")
        if not once:
            say("all checkpoints are evaluated")

    def _round(self) -> None:
        evaluations = due(self.run, self.uploads)
        self.jobs.update(evaluations)
        self._take_results()
        if self.later.is_due("sbatch"):
            for evaluation in evaluations:
                if self.jobs.is_to_be_submitted(evaluation) and not self._submit(evaluation):
                    break

    def _submit(self, evaluation: Evaluation) -> bool:
        """Whether to go on with the next one."""
        try:
            job = self.jobs.submit(evaluation)
        except ConversionError as error:
            self.later.put_off("sbatch", f"the evaluation of {evaluation.model} is not submitted: {error}")
            return False
        self.later.done("sbatch")
        say(f"job {job} evaluates {evaluation.model}")
        return True

    def _take_results(self) -> None:
        """Those that came since the last look. First they are reported, which is done once, then they go to the file that says
        which were taken: a kill in between does not matter."""
        found = {one.step: read_record(one) for one in evaluated(self.run)}
        came = {step: record["results"] for step, record in found.items() if self.results.get(step) != record["results"]}
        if came or (self.to_report and self.later.is_due("report")):
            self._report(list(found.values()))
        if not came:
            return
        self.results |= came
        lines = [json.dumps({"step": step, **self.results[step]}) + "\n" for step in sorted(self.results)]
        write_whole(self.run / RESULTS_NAME, "".join(lines))
        for step, numbers in sorted(came.items()):
            told = ", ".join(f"{name} {value:.5g}" for name, value in sorted(numbers.items()))
            say(f"step {step}: {told or NO_NUMBERS}")
            for task, reason in found[step]["not_run"].items():
                say(f"step {step}: not run: {task}: {reason}")

    def _report(self, records: Sequence[dict[str, Any]]) -> None:
        """A reference that cannot be read any more holds up no evaluation."""
        try:
            self.report.make(records)
            self.later.done("report")
            self.to_report = False
        except UserError as error:
            self.to_report = True
            self.later.put_off("report", f"nothing is compared: {error}")

    def _waiting(self) -> list[str]:
        """What the run's end is waited out for."""
        failed = {step for step, export in Records(self.run / "hf").exports.items() if export.failed}
        evaluations = {one.step: one for one in due(self.run, self.uploads)}
        steps = {step_of(path) for path in whole_checkpoints(self.run)} | evaluations.keys()
        return [
            export_name(step)
            for step in sorted(steps - failed)
            if step not in evaluations or not self.jobs.is_over(evaluations[step])
        ]


def due(run: Path, uploads: bool) -> list[Evaluation]:
    """What is exported, and uploaded where that is asked for; oldest first."""
    found = []
    for step, digest in exported(run).items():
        note = read_note(run, step)
        if not uploads or (note and digest in (UNKNOWN, note.checkpoint)):
            found.append(Evaluation(run, step, digest))
    return found


def evaluated(run: Path) -> list[Evaluation]:
    """Those whose result is there, of the checkpoint that each step has by now; oldest first. The export may be gone."""
    noted = {step: export.checkpoint for step, export in Records(run / "hf").exports.items() if not export.failed}
    every = [Evaluation(run, step, digest) for step, digest in sorted((exported(run) | noted).items())]
    return [one for one in every if one.result.exists()]


def read_record(evaluation: Evaluation) -> dict[str, Any]:
    """What an evaluation found, as evaluation/report.py takes it: the results.json of `run`, which a judge may have added to
    since, or of another command {"results": {NAME: NUMBER}}. Its results are finite; empty where it holds something else."""
    folder = evaluation.result.with_suffix("")
    is_of_run = (folder / "results.json").is_file()
    record: dict[str, Any] = {"tokens": None, "intervals": {}, "chance": {}, "higher_is_better": {}, "not_run": {}}
    with contextlib.suppress(ValueError, TypeError):  # damaged: `run` would have refused it, which others need not
        if progress := smol_progress.read(evaluation.model):
            record["tokens"] = progress.tokens
    try:
        record |= json.loads((folder / "results.json" if is_of_run else evaluation.result).read_text(encoding="utf8"))
        numbers = record["results"].items()
        results = {str(name): float(value) for name, value in numbers if value is not None and math.isfinite(value)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        results = {}
    return record | {"step": evaluation.step, "results": results} | ({"folder": str(folder)} if is_of_run else {})


# --- the command -----------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> None:
    config = load(RunConfig, options.config, options.overrides)
    run = Path(config.train.output_dir).absolute()
    references = shlex.split(os.environ.get("SMOL_EVALUATE_REFERENCES", ""))
    load_references(references)  # refused before anything is waited for

    def work(stop: Stop) -> None:
        with telling(run, config.alerts) as tell:
            evaluations = Evaluations(run, config.checkpoint.upload is not None, references, options.every, stop, tell)
            if options.retry_failed:
                evaluations.jobs.forget_failures()
            evaluations.work(once=not options.watch)

    work_beside(run, options, "slurm/evaluations.lock", "somebody who evaluates", work)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = parser_for("evaluations", __doc__)
    parser.add_argument("--retry-failed", action="store_true", help="submit again what failed, once")
    options = parser.parse_intermixed_args(arguments)
    return service_exit_code(lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())
