"""`judge OUT_DIR`, and the end of `run`: another model scores the answers of the tasks that name a judge in the suite.

    OUT_DIR/samples/TASK.jsonl --prompt--> URL/chat/completions --"Score: N"--> eval/TASK/judged, each verdict into the samples

The verdict's last line must be `Score: N`, N on the judge's scale. One that is not is `unparsed`: it is counted, and enters no
mean. An answer of nothing, as where reasoning never ended, is not sent and has the lowest score; it is counted too (`empty`).

`run` leaves OUT_DIR whole before the first answer is judged, with the judge in `not_run`. Verdicts are kept in
OUT_DIR/verdicts_TASK.jsonl as they come; the score is there when all of a task's answers are judged. Until then `judge OUT_DIR`
asks for the rest, also at another address.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation import results
from evaluation.client import Client, Job, find
from evaluation.scalars import add_records
from evaluation.statistic import interval
from evaluation.suite import JUDGED, Judge, SuiteTask
from smol_config import UserError, parse
from smol_console import add_command, whole_number
from smol_files import write_whole

FORMAT = (
    "\n\nEnd your reply with a line that holds nothing but `Score: N`, where N is a whole number from {} (worst) to {} (best)."
)
_SCORE = re.compile(r"Score: (\d+)")
_PLACE = re.compile(r"\{(question|reference|answer)\}")


def prompt_of(judge: Judge) -> str:
    """The whole prompt, with places for question, reference and answer. Raises UserError for a file that is none."""
    try:
        text = judge.prompt.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"judge.prompt: {judge.prompt} cannot be read ({error}); give a text file") from error
    if "{answer}" not in text:
        raise UserError(f"judge.prompt: {judge.prompt} has no {{answer}}; write it where the answer shall stand")
    return text.strip() + FORMAT.format(*judge.scale)


def check(asked: Sequence[SuiteTask]) -> None:
    """Before hours go into answers. Raises UserError for a prompt that is none, and for a judge that is not there."""
    for judge in {task.judge for task in asked if task.judge}:
        prompt_of(judge)
        _find(judge)


def judge_all(folder: Path, at_once: int, url: str | None = None) -> dict[str, Any]:
    """Judge what is not judged in the OUT_DIR `folder`, at `url` or where the suite says; returns the record of results.json.

    Its "not_run" names the tasks whose judge did not answer.
    """
    record: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf8"))
    for label, task in record["tasks"].items():
        if (waits := f"{label} {JUDGED}") in record["not_run"]:
            settings = task["judge"] | ({"url": url} if url else {})
            try:
                task["judge"] = settings | _judge(
                    folder, label, parse(Judge, settings, "results.json", "judge"), record, at_once
                )
                del record["not_run"][waits]
            except UserError as error:
                record["not_run"][waits] = f"{error}; python -m evaluation judge {folder}"
            write_whole(folder / "results.json", json.dumps(record, indent=1) + "\n")
            if waits not in record["not_run"]:
                _verdicts(folder, label).unlink(missing_ok=True)
    return record


def _judge(folder: Path, label: str, judge: Judge, record: dict[str, Any], at_once: int) -> dict[str, Any]:
    """Of one task: verdicts into its samples, the score into the record; returns what is to be known of the judging."""
    path, prompt, seed = folder / "samples" / f"{label}.jsonl", prompt_of(judge), record["suite"]["seed"]
    samples = results.read_samples(path)
    lines = [line for line in samples if line["filter"] == samples[0]["filter"]]  # filters take different parts of an answer
    answers = [[results.without_reasoning(response).strip() for response in line["responses"][0]] for line in lines]
    jobs = [
        _job(judge, prompt, line, answer, seed)
        for line, of_line in zip(lines, answers, strict=True)
        for answer in of_line
        if answer
    ]
    known_as = f"{judge.model} {judge.revision}"  # and not the address: verdicts stay good when the judge moves
    kept = _verdicts(folder, label)
    verdicts = iter(Client(_find(judge), kept, at_once, known_as, judge.key).ask(jobs))
    for line, of_line in zip(lines, answers, strict=True):
        line["verdicts"] = [next(verdicts) if answer else None for answer in of_line]
        line["judged"] = [0.0 if verdict is None else score_in(verdict, judge.scale) for verdict in line["verdicts"]]
        if parsed := [score for score in line["judged"] if score is not None]:
            line["scores"][JUDGED] = sum(parsed) / len(parsed)
    write_whole(path, "".join(json.dumps(line) + "\n" for line in samples))
    said, scores = ([item for line in lines for item in line[key]] for key in ("verdicts", "judged"))
    if not (values := [line["scores"][JUDGED] for line in lines if JUDGED in line["scores"]]):
        kept.unlink(missing_ok=True)  # nothing in it is worth keeping from a judge that was mended
        raise UserError(f"none of {len(said)} verdicts of {judge.model} ends with `Score: N`; the first is {said[0]!r:.300}")
    mode = record["tasks"][label]["mode"]
    name = results.score_name(label.removesuffix(f"_{mode}"), mode, JUDGED)
    record["results"][name], record["higher_is_better"][name] = sum(values) / len(values), True
    record["intervals"][name], record["statistics"][name] = interval(values, "mean", seed), "mean"
    counts = {"answers": len(said), "empty": said.count(None), "unparsed": scores.count(None)}
    return {"prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(), **counts}


def _verdicts(folder: Path, label: str) -> Path:
    return folder / f"verdicts_{label}.jsonl"


def _job(judge: Judge, prompt: str, line: dict[str, Any], answer: str, seed: int) -> Job:
    said = {"question": line["asked"], "reference": str(line["target"]), "answer": answer}
    text = _PLACE.sub(lambda place: said[place[1]], prompt)
    body = {"model": judge.model, "messages": [{"role": "user", "content": text}]}
    return Job(body | {"temperature": 0.0, "max_tokens": judge.max_tokens, "seed": seed})


def score_in(verdict: str, scale: tuple[int, int]) -> float | None:
    """The score of a verdict between 0 and 1; None where its last line is none, or off the scale."""
    lines = results.without_reasoning(verdict).strip().splitlines()
    found = _SCORE.fullmatch(lines[-1].strip()) if lines else None
    low, high = scale
    return (int(found[1]) - low) / (high - low) if found and low <= int(found[1]) <= high else None


def _find(judge: Judge) -> Any:
    return find(judge.url, judge.model, "judge.url", "judge.model", judge.key)


# --- the command -----------------------------------------------------------------------------------------------------------


def judge(options: argparse.Namespace) -> int:
    """1 where answers are still not judged. Raises UserError for a folder that `run` has not written, or without a judge."""
    path = options.output / "results.json"
    try:
        tasks = json.loads(path.read_text(encoding="utf8"))["tasks"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a folder that `run` has written") from error
    if not any("judge" in task for task in tasks.values()):
        raise UserError(f"{path}: no task of it has a judge; give the task one in the suite, and run the suite again")
    record = judge_all(options.output, options.concurrency, options.url)
    print(results.result_table(record))
    if options.tensorboard:
        add_records(options.tensorboard, [record])
    return tell(record)


def tell(record: dict[str, Any]) -> int:
    """Say on stderr what scores do not: the exit code of `run` and `judge`, 1 where something was not run."""
    for name, task in record["tasks"].items():
        if task["truncated"]:
            print(f"{name}: the model did not read the beginning of {task['truncated']} questions: too long", file=sys.stderr)
        if unparsed := task.get("judge", {}).get("unparsed"):
            print(f"{name}: {unparsed} of {task['judge']['answers']} verdicts hold no score and count as none", file=sys.stderr)
    for name, reason in record["not_run"].items():
        print(f"not run: {name}: {reason}", file=sys.stderr)
    return 1 if record["not_run"] else 0


def add_parser(commands: Any) -> None:
    """The parser of `judge`."""
    command = add_command(
        commands,
        "judge",
        "Ask the judges of a suite for what they have not judged yet of an OUT_DIR of `run`.",
        "python -m evaluation judge runs/smollm3/scores --url http://node07:8000/v1",
    )
    command.add_argument("output", metavar="OUT_DIR", type=Path, help="what `run` has written")
    command.add_argument("--url", metavar="URL", help="where the judge is now; without it as the suite says")
    command.add_argument("--concurrency", metavar="N", type=whole_number(1), default=32, help="requests at once (default 32)")
    command.add_argument("--tensorboard", metavar="DIR", type=Path, help="add the scores to DIR, as `run` does")
    command.set_defaults(run=judge)
