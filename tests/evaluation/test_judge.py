"""Judges of a suite's tasks: what is sent and scored, verdicts that hold no score, and a judge that dies half-way."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from completions_server import CompletionsServer
from evaluation_parts import COLOURS, Write, lines, record, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import REPOSITORY

from evaluation.__main__ import main
from evaluation.judge import FORMAT, score_in

PROMPT = "Question: {question}\nExpected: {reference}\nAnswer: {answer}\n"
SCORED = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
SETTINGS: dict[str, Any] = {"output_type": "generate_until", "doc_to_choice": None, "metric_list": SCORED}
SETTINGS |= {"doc_to_target": "{{choices[answer]}}", "generation_kwargs": {"until": [], "max_gen_toks": 4}}
NAME = "eval/said/judged"


@pytest.fixture
def suite(write_suite: Write, write_task: Write, server: CompletionsServer, tmp_path: Path) -> Callable[..., Path]:
    """suite(judge's settings, task=its settings): eight questions, answered in words."""
    write_task("said", COLOURS, **SETTINGS)
    (tmp_path / "judge.txt").write_text(PROMPT)

    def write(judge: dict[str, Any] | None = None, **task: Any) -> Path:
        settings = {"url": server.url, "model": "small", "revision": "7c1", "prompt": "judge.txt", "scale": [0, 4]}
        return write_suite([{"name": "said", "judge": settings | (judge or {}), **task}])

    return write


@pytest.fixture
def other(chat_model: Path) -> Iterator[CompletionsServer]:
    """The same judge at another address."""
    served = CompletionsServer(chat_model)
    yield served
    served.close()


def test_answers_are_scored_by_the_last_line_of_the_judges_verdict(
    chat_model: Path, suite: Callable[..., Path], server: CompletionsServer, tmp_path: Path
) -> None:
    server.verdict = lambda prompt: f"<think>Score: 0</think>Well.\n\nScore: {3 if 'sky' in prompt else 1} \n"
    assert run(chat_model, suite(metrics=["judged"]), tmp_path / "out") == 0
    made, rows = record(tmp_path / "out"), lines(tmp_path / "out" / "samples" / "said.jsonl")
    assert made["results"] == {NAME: (3 / 4 + 7 * 1 / 4) / 8} and made["higher_is_better"] == {NAME: True}
    low, high = made["intervals"][NAME]
    assert low < made["results"][NAME] < high and not made["not_run"]
    prompt = PROMPT.strip() + FORMAT.format(0, 4)
    told = made["tasks"]["said"]["judge"]
    assert told["prompt_sha256"] == hashlib.sha256(prompt.encode()).hexdigest()
    assert (told["model"], told["revision"], told["url"], told["scale"]) == ("small", "7c1", server.url, [0, 4])
    assert (told["answers"], told["empty"], told["unparsed"]) == (8, 0, 0)
    assert rows[0]["scores"]["judged"] == 0.75 and rows[0]["verdicts"][0].startswith("<think>Score: 0</think>Well.")
    sent = {body["messages"][0]["content"]: body for body in server.requests}
    for row, said in zip(COLOURS, rows, strict=True):
        answer = said["responses"][0][0].strip()
        given = {"question": row["question"], "reference": row["choices"][row["answer"]], "answer": answer}
        body = sent[PROMPT.format(**given).strip() + FORMAT.format(0, 4)]
        assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("small", 0.0, 2048, 0)
    assert not list((tmp_path / "out").glob("verdicts*"))


def test_an_answers_own_words_are_no_places_of_the_prompt(
    chat_model: Path, suite: Callable[..., Path], write_task: Write, server: CompletionsServer, tmp_path: Path
) -> None:
    path = suite()
    write_task("said", [{**COLOURS[0], "question": "What are {answer} and {reference}?"}], **SETTINGS)
    assert run(chat_model, path, tmp_path / "out") == 0
    assert "Question: What are {answer} and {reference}?\nExpected: red\n" in server.requests[0]["messages"][0]["content"]


def test_a_verdict_without_a_score_is_counted_and_is_no_zero(
    chat_model: Path, suite: Callable[..., Path], server: CompletionsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = {"sky": "Score: 4 of 4", "grass": "Score: 5", "sea": None, "rose": "Score: 2\nI think.", "leaf": "Score: 4"}
    server.verdict = lambda prompt: next((verdicts[word] for word in verdicts if f"The {word} is" in prompt), "Score: 2")
    server.fault = lambda number: (413, b"too long", {}) if "The moon is" in str(server.requests[number - 1]) else None
    assert run(chat_model, suite(), tmp_path / "out") == 0
    made, rows = record(tmp_path / "out"), lines(tmp_path / "out" / "samples" / "said.jsonl")
    assert made["results"][NAME] == (1 + 0.5 + 0.5) / 3 and made["tasks"]["said"]["judge"]["unparsed"] == 5
    assert "said: 5 of 8 verdicts hold no score and count as none" in capsys.readouterr().err
    assert ["judged" in row["scores"] for row in rows] == [False, False, False, False, True, True, False, True]
    assert rows[6]["verdicts"] == ["refused: 413 too long"] and rows[2]["verdicts"] == [""]


def test_several_answers_to_a_question_are_averaged_and_reasoning_is_not_judged(
    chat_model: Path, suite: Callable[..., Path], server: CompletionsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["<think>a</think>good", "<think>never ends", "bad", " odd "] * 2
    monkeypatch.setattr("evaluation.run.LocalModel.generate_until", lambda self, requests: said[: len(requests)])
    scores = {"good": "Score: 4", "bad": "Score: 1", "odd": "no"}
    server.verdict = lambda prompt: scores[prompt.partition("Answer: ")[2].split()[0]]
    path = suite(modes=["chat"], repeats=4, subset=2, generation={"do_sample": True, "temperature": 1.0})
    assert run(chat_model, path, tmp_path / "out") == 0
    made = record(tmp_path / "out")
    assert made["results"]["eval/said/chat/judged"] == pytest.approx((1 + 0 + 0.25) / 3)
    judged = made["tasks"]["said_chat"]["judge"]
    assert (judged["answers"], judged["empty"], judged["unparsed"]) == (8, 2, 2) and len(server.requests) == 6


def test_a_judge_that_dies_half_way_is_told_and_goes_on_elsewhere(
    chat_model: Path,
    suite: Callable[..., Path],
    server: CompletionsServer,
    other: CompletionsServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, board = tmp_path / "out", tmp_path / "board"
    model = shutil.copytree(chat_model, tmp_path / "step_7")
    server.fault = lambda number: (0, b"", {}) if number > 5 else None
    more = ("--concurrency", "1")
    assert run(model, suite(), out, *more) == 1
    said = capsys.readouterr().err
    assert f"not run: said judged: small at {server.url} gave no answer in 5 attempts (RemoteProtocolError" in said
    assert (
        f"its 5 answers are in {out / 'verdicts_said.jsonl'} and are not asked for again; python -m evaluation judge {out}"
        in said
    )
    assert NAME not in record(out)["results"] and "eval/said/exact_match" in record(out)["results"]
    assert "judged" not in lines(out / "samples" / "said.jsonl")[0]["scores"]
    server.close()
    assert main(["judge", str(out), *more]) == 1
    assert f"not run: said judged: judge.url {server.url}: no list of models (ConnectError" in capsys.readouterr().err
    command = ["judge", str(out), "--url", other.url, "--tensorboard", str(board), *more]
    assert main(command) == 0
    assert len(other.requests) == 3 and "eval/said/judged       0.2500" in capsys.readouterr().out
    made = record(out)
    assert not made["not_run"] and made["tasks"]["said"]["judge"]["url"] == other.url
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "samples"]
    assert main(command) == 0, "nothing is left to be judged"
    assert len(other.requests) == 3 and record(out) == made
    [point] = EventAccumulator(str(board / "evaluations")).Reload().Scalars(NAME)
    assert (point.step, point.value) == (7, 0.25)


def test_a_judge_that_never_keeps_the_format_gives_no_score(
    chat_model: Path, suite: Callable[..., Path], server: CompletionsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.verdict = lambda prompt: "Quite good."
    assert run(chat_model, suite(), tmp_path / "out") == 1
    assert "none of 8 verdicts of small ends with `Score: N`; the first is 'Quite good.'; python" in capsys.readouterr().err
    assert NAME not in record(tmp_path / "out")["results"]
    server.verdict = lambda prompt: "Score: 4"
    assert main(["judge", str(tmp_path / "out")]) == 0
    assert record(tmp_path / "out")["results"][NAME] == 1


@pytest.mark.parametrize(
    ("verdict", "score"),
    [
        *(("Score: 1", 0.0), ("Fine.\nScore: 10\n\n", 1.0), ("\nScore: 4 ", 1 / 3), ("<think>Score: 2</think>Score: 1", 0.0)),
        *((wrong, None) for wrong in ("Score: 11", "Score: 0", "score: 5", "", "Score: 5.5", "Score: -5", "**Score: 5**")),
        *((wrong, None) for wrong in ("<think>\nScore: 5", "Score: 5\nor so", "A Score: 5", "Score: 5 of 10", "Score: five")),
    ],
)
def test_a_score_stands_alone_on_the_last_line(verdict: str, score: float | None) -> None:
    assert score_in(verdict, (1, 10)) == score


def test_a_judge_that_cannot_judge_is_refused_before_anything_is_asked(
    chat_model: Path,
    suite: Callable[..., Path],
    write_suite: Write,
    server: CompletionsServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(sentence: str, judge: dict[str, Any], **task: Any) -> None:
        assert run(chat_model, suite(judge, **task), tmp_path / "out") == 2
        assert sentence in capsys.readouterr().err and not list(tmp_path.glob("out*")) and not server.requests

    (tmp_path / "blind.txt").write_text("Is it right?")
    refused(f"judge.prompt: {tmp_path / 'blind.txt'} has no {{answer}}; write it where", {"prompt": "blind.txt"})
    refused(f"judge.prompt: {tmp_path / 'none.txt'} cannot be read", {"prompt": "none.txt"})
    refused(f"judge.model 'smal' is none that {server.url} has; did you mean 'small'", {"model": "smal"})
    refused("judge.url http://127.0.0.1:9/v1: no list of models (ConnectError", {"url": "http://127.0.0.1:9/v1"})
    refused("judge.scale: [4, 4] does not rise; give the lowest score and then the highest", {"scale": [4, 4]})
    refused("judge.url: results.json holds it, and so user and password; set", {"url": "http://me:secret@host/v1"})
    refused("tasks: said has no metric 'judge'; did you mean 'judged'", {}, metrics=["judge"])
    judge = {"url": server.url, "model": "small", "revision": "", "prompt": "judge.txt"}
    assert run(chat_model, write_suite([{"name": "sums", "judge": judge}]), tmp_path / "out") == 2
    assert "task sums generates nothing; take generation, repeats and judge away from it" in capsys.readouterr().err
    assert main(["judge", str(tmp_path)]) == 2
    assert "results.json cannot be read" in capsys.readouterr().err
    (tmp_path / "results.json").write_text(json.dumps({"tasks": {"said": {}}}))
    assert main(["judge", str(tmp_path)]) == 2
    assert "no task of it has a judge; give the task one in the suite" in capsys.readouterr().err


def test_mixeval_hards_questions_are_judged_beside_what_is_expected(
    chat_model: Path, server: CompletionsServer, tmp_path: Path
) -> None:
    """The suite that ships, on a question of each kind in place of the Hub's."""
    rows = {
        "free_form": {"context": "Rain fell.", "prompt": "What fell?", "target": ["rain", "water"]},
        "multiple_choice": {"context": None, "prompt": "Which is blue?", "options": ["grass", "sky"], "target": ["1"]},
    }
    for folder in ("smollm3", "suites"):
        shutil.copytree(REPOSITORY / "evaluation" / folder, tmp_path / folder)
    for split, row in rows.items():
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    for path in (tmp_path / "smollm3").glob("mixeval*.yaml"):
        text = path.read_text()
        split = next(split for split in rows if f"test_split: {split}" in text)
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {split: str(tmp_path / f"{split}.jsonl")}}}
        hub = "dataset_path: MixEval/MixEval\ndataset_name: MixEval_Hard\n"
        assert hub in text
        path.write_text(text.replace(hub, yaml.safe_dump(data)))
    server.models["data"][0]["id"] = "flowaicom/Flow-Judge-v0.1"
    settings = [f"tasks.{number}.judge.url={server.url}" for number in (0, 1)]
    settings += [f"tasks.{number}.generation.max_gen_toks=4" for number in (0, 1)]
    path = tmp_path / "suites" / "smollm3_mixeval.yaml"
    assert run(chat_model, path, tmp_path / "out", "max_length=256", "dtype=float32", *settings) == 0
    results = record(tmp_path / "out")["results"]
    assert results["eval/mixeval_hard_freeform/think/judged"] == 0.2
    assert results["eval/mixeval_hard_multichoice/no_think/judged"] == 1
    assert results["eval/mixeval_hard_multichoice/no_think/answered"] in (0, 1)
    sent = [body["messages"][0]["content"] for body in server.requests]
    [free, *_] = [text for text in sent if "What fell?" in text]
    assert "# Question\nRain fell.\n\nQuestion: What fell?\nAnswer the question shortly.\n\n# Expected" in free
    assert "any of these\nrain or water\n\n# Answer\n" in free and free.endswith("from 0 (worst) to 5 (best).")
    [choice, *_] = [text for text in sent if "Which is blue?" in text]
    assert "# Question\nWhich is blue?\nA. grass\nB. sky\nAnswer with the letter of the right option.\n\n# Right" in choice
    assert "option\nB. sky\n\n# Answer\n" in choice
