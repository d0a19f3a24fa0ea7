"""`python -m evaluation run` and `show`: lm-eval's scores, and everything that they depend on beside them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import lm_eval
import numpy as np
import pytest
from completions_server import CompletionsServer
from evaluation_parts import COLOURS, OFFLINE, Write, lines, record, run
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import smol_progress
from evaluation.__main__ import main
from smol_console import Progress


def test_scores_are_those_of_lm_eval_on_the_same_tasks(
    plain_model: Path, corpus: Path, tmp_path: Path, write_suite: Write, write_task: Write
) -> None:
    write_task("colours", COLOURS)
    text = str(corpus / "text" / "held_out")
    data = {"text": text, "lengths": [128, 200], "depths": [0.0, 1.0], "each": 2}
    names = ["text_docs", "sums", "needle", "colours"]
    suite = write_suite([{"name": name, "subset": 150} for name in names], data=data)
    assert run(plain_model, suite, tmp_path / "out") == 0
    ours = record(tmp_path / "out")

    told = {"pretrained": str(plain_model), **data}
    manager = TaskManager(include_path=[str(OFFLINE), str(tmp_path / "tasks")], include_defaults=False, metadata=told)
    sums = sorted({line["question"] for line in lines(tmp_path / "out" / "samples" / "sums.jsonl")})
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(plain_model), device="cpu", dtype="float32", batch_size=3),
        tasks=names,
        task_manager=manager,
        samples={"sums": sums},
        bootstrap_iters=0,
    )
    assert theirs and len(sums) == 150
    compared = 0
    for name, value in ours["results"].items():
        _, task, metric = name.split("/")
        if f"{metric},none" in theirs["results"][task]:
            compared += 1
            assert value == pytest.approx(theirs["results"][task][f"{metric},none"], rel=1e-6), name
    assert compared == 6

    assert ours["intervals"]["eval/sums/acc"][0] <= ours["results"]["eval/sums/acc"] <= ours["intervals"]["eval/sums/acc"][1]
    assert ours["chance"]["eval/colours/acc"] == pytest.approx(1 / 3) and ours["chance"]["eval/text_docs/bits_per_byte"] == 8
    assert (ours["step"], ours["tokens"], ours["not_run"]) == (40, None, {})
    assert ours["tasks"]["sums"]["questions"] == 150 and ours["tasks"]["sums"]["of"] == 200
    assert ours["versions"]["lm_eval"] == "0.4.13" and ours["suite"]["data"]["text"] == text
    assert (tmp_path / "out" / "depth_length_needle.png").read_bytes().startswith(b"\x89PNG")
    cells = [(line["length"], line["depth"]) for line in lines(tmp_path / "out" / "samples" / "needle.jsonl")]
    assert sorted(set(cells)) == [(128, 0.0), (128, 1.0), (200, 0.0), (200, 1.0)]


def test_likelihoods_by_token_and_of_the_right_answer_follow_from_lm_evals(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write
) -> None:
    from transformers import AutoTokenizer

    write_task("colours", COLOURS)
    assert run(plain_model, write_suite([{"name": "colours"}]), tmp_path / "out") == 0
    tokenizer = AutoTokenizer.from_pretrained(plain_model)
    right, log_likelihood, size = [], 0.0, 0
    for line, row in zip(lines(tmp_path / "out" / "samples" / "colours.jsonl"), COLOURS, strict=True):
        likelihoods = [response[0][0] for response in line["responses"]]
        tokens = [
            len(tokenizer(f"{row['question']} {choice}")["input_ids"]) - len(tokenizer(row["question"])["input_ids"])
            for choice in row["choices"]
        ]
        assert len(set(tokens)) > 1
        right.append(int(np.argmax(np.array(likelihoods) / tokens)) == row["answer"])
        log_likelihood += likelihoods[row["answer"]]
        size += len(f" {row['choices'][row['answer']]}")
    results = record(tmp_path / "out")["results"]
    assert results["eval/colours/acc_tokens"] == pytest.approx(np.mean(right))
    assert results["eval/colours/gold_bits_per_byte"] == pytest.approx(-log_likelihood / size / np.log(2))


def test_normalisations_that_a_task_does_not_list_are_lm_evals(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write
) -> None:
    """Answers of 2 to 31 characters, of one to four bytes each, so that no two normalisations agree on all questions."""
    latin, other = (
        ["no", "höchst ungewiß", "in the far north of the country", "日本語です"],
        ["zqxj", "øýþðøýþðøý", "日本語です", "𝔞𝔟"],
    )
    rows = [
        {**row, "choices": answers, "answer": number % 4}
        for answers in (latin, other)
        for number, row in enumerate(COLOURS * 3)
    ]
    every = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm", "acc_bytes")]
    write_task("alone", rows)
    write_task("listed", rows, metric_list=every)
    assert run(plain_model, write_suite([{"name": "alone"}, {"name": "listed"}]), tmp_path / "out") == 0
    made = record(tmp_path / "out")
    alone, listed = (lines(tmp_path / "out" / "samples" / f"{name}.jsonl") for name in ("alone", "listed"))
    assert [line["scores"] for line in alone] == [line["scores"] for line in listed]
    assert len({tuple(line["scores"][name] for line in alone) for name in ("acc", "acc_norm", "acc_bytes")}) == 3
    for metric in ("acc_norm", "acc_bytes"):
        name = f"eval/alone/{metric}"
        assert made["results"][name] == made["results"][f"eval/listed/{metric}"] and made["chance"][name] == 0.25
        assert made["intervals"][name] == made["intervals"][f"eval/listed/{metric}"]


def test_choices_inside_a_question_are_normalised_by_what_follows_them(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write
) -> None:
    """Winogrande's: what is scored is the same text after each choice, so no length can change the order."""
    inside = {"doc_to_text": "{{answer}}", "doc_to_choice": "{{choices}}", "doc_to_target": " of {{question}}"}
    choices = [["a", "the very last one of them all"], ["the very last one of all", "red"], ["green", "light blue and grey"]]
    write_task("inside", [{**row, "choices": pair, "answer": 0} for pair in choices for row in COLOURS], **inside)
    assert run(plain_model, write_suite([{"name": "inside"}]), tmp_path / "out") == 0
    for scores in (line["scores"] for line in lines(tmp_path / "out" / "samples" / "inside.jsonl")):
        assert scores["acc_norm"] == scores["acc_bytes"] == scores["acc_tokens"] == scores["acc"]


def test_the_multiple_choice_form_lists_the_answers_and_scores_letters(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task("colours", COLOURS)
    write_task("named", [{**row, "answer": row["choices"][row["answer"]]} for row in COLOURS])
    tasks = [{"name": "colours", "form": "cf"}, {"name": "colours", "form": "mcf"}, {"name": "named", "form": "mcf"}]
    suite = write_suite(tasks)
    assert main(["show", str(plain_model), "--suite", str(suite)]) == 0
    shown = capsys.readouterr().out
    listed = "The sky is\n A. red\n B. light blue\n C. very dark green\nAnswer:\n-> ' A'\n-> ' B'\n-> ' C'\n"
    assert "== colours, base, question 0\nThe sky is\n-> ' red'\n" in shown
    assert f"== colours_mcf, base, question 0\n{listed}" in shown
    assert run(plain_model, suite, tmp_path / "out") == 0
    assert {"eval/colours/acc", "eval/colours_mcf/acc"} < record(tmp_path / "out")["results"].keys()
    gold = [line["target"] for line in lines(tmp_path / "out" / "samples" / "named_mcf.jsonl")]
    assert gold == [row["answer"] for row in COLOURS]


def test_chats_are_asked_in_each_mode_and_scored_without_their_reasoning(
    chat_model: Path, tmp_path: Path, write_suite: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [
        {"name": "instructions", "modes": ["think", "no_think"], "subset": 4, "generation": {"max_gen_toks": 8}},
        {"name": "sums_answered", "modes": ["no_think"], "repeats": 3, "subset": 2, "generation": {"max_gen_toks": 8}},
        {"name": "think_follow", "modes": ["chat"], "subset": 4, "generation": {"max_gen_toks": 8}},
    ]
    suite = write_suite(tasks, system="Be brief.")
    assert main(["show", str(chat_model), "--suite", str(suite), "--count", "2"]) == 0
    shown = capsys.readouterr().out
    assert (
        "== instructions, think, question 0\n<|im_start|>system\n/think\n\nBe brief.<|im_end|>\n<|im_start|>user\nWrite"
        in shown
    )
    assert "<|im_start|>system\n/no_think\n\nBe brief.<|im_end|>" in shown
    assert "/no_think<|im_end|>\n<|im_start|>assistant\n\n" in shown, "the conversation alone says the mode"
    assert run(chat_model, suite, tmp_path / "out") == 0
    made = record(tmp_path / "out")
    expected = {
        "eval/instructions/think/followed",
        "eval/instructions/no_think/all_followed",
        "eval/sums_answered/no_think/exact_match",
        "eval/think_follow/chat/mode_followed",
    }
    assert expected < made["results"].keys() and made["tasks"]["sums_answered_no_think"]["repeats"] == 3
    assert [len(line["responses"][0]) for line in lines(tmp_path / "out" / "samples" / "sums_answered_no_think.jsonl")] == [
        3,
        3,
    ]
    prompts = {made["tasks"][f"instructions_{mode}"]["prompts_sha256"] for mode in ("think", "no_think")}
    assert len(prompts) == 2


def test_scores_go_to_tensorboard_by_step_and_by_tokens_once(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write
) -> None:
    write_task("colours", COLOURS)
    model = tmp_path / "export"
    shutil.copytree(plain_model, model)
    smol_progress.write(model, smol_progress.Progress(50, 102400, 0.5))
    suite = write_suite([{"name": "colours", "metrics": ["acc", "gold_bits_per_byte"]}])
    for name in ("a", "b"):
        assert run(model, suite, tmp_path / name, "--tensorboard", str(tmp_path / "board")) == 0
    assert record(tmp_path / "a")["results"].keys() == {"eval/colours/acc", "eval/colours/gold_bits_per_byte"}
    for folder, step in (("evaluations", 50), ("evaluations_by_tokens", 102400)):
        board = EventAccumulator(str(tmp_path / "board" / folder)).Reload()
        [point] = board.Scalars("eval/colours/acc")
        assert point.step == step and point.value == pytest.approx(record(tmp_path / "a")["results"]["eval/colours/acc"])
    assert record(tmp_path / "a")["learning_rate_share"] == 0.5
    (model / "training.json").unlink()
    (model / "trainer_state.json").write_text('{"global_step": 7, "num_input_tokens_seen": 99}')
    assert run(model, suite, tmp_path / "c") == 0
    assert (record(tmp_path / "c")["step"], record(tmp_path / "c")["tokens"]) == (7, 99)


def test_report_tasks_are_run_only_when_asked_for(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("colours", "kept"):
        write_task(name, COLOURS)
    suite = write_suite([{"name": "colours"}, {"name": "kept", "use": "report"}])
    assert run(plain_model, suite, tmp_path / "a", "--subset", "3") == 0
    assert (
        record(tmp_path / "a")["tasks"].keys() == {"colours"} and record(tmp_path / "a")["tasks"]["colours"]["questions"] == 3
    )
    assert run(plain_model, suite, tmp_path / "b", "--use", "report") == 0
    assert record(tmp_path / "b")["tasks"].keys() == {"kept"}
    assert run(plain_model, write_suite([{"name": "colours"}]), tmp_path / "c", "--use", "report") == 2
    assert "no task has use: report, which --use asks for; give the other use" in capsys.readouterr().err


def test_what_the_hub_does_not_give_is_named_and_the_rest_runs(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task("colours", COLOURS)
    write_task("far", COLOURS, dataset_path="some-org/some-questions", dataset_kwargs={})
    write_task("packages", COLOURS)
    (tmp_path / "tasks" / "packages.yaml").write_text(
        "task: packages\ncustom_dataset: !function needs.rows\ntest_split: test\noutput_type: multiple_choice\n"
    )
    (tmp_path / "tasks" / "needs.py").write_text("def rows(**_):\n    import no_such_package\n")
    suite = write_suite([{"name": "far"}, {"name": "packages"}, {"name": "colours"}])
    assert run(plain_model, suite, tmp_path / "out") == 1
    assert record(tmp_path / "out")["tasks"].keys() == {"colours"}
    assert record(tmp_path / "out")["not_run"].keys() == {"far", "packages"}
    said = capsys.readouterr().err
    assert "not run: far: Couldn't reach 'some-org/some-questions' on the Hub" in said
    assert "not run: packages: No module named 'no_such_package'" in said
    assert main(["show", str(plain_model), "--suite", str(suite)]) == 0
    assert "== far cannot be run: Couldn't reach" in capsys.readouterr().out


def test_progress_is_told_by_this_repositorys_console_alone(
    chat_model: Path,
    tmp_path: Path,
    write_suite: Write,
    write_task: Write,
    monkeypatch: pytest.MonkeyPatch,
    server: CompletionsServer,
    capfd: pytest.CaptureFixture[str],
) -> None:
    told: list[Progress] = []

    class Told(Progress):
        def __enter__(self) -> Self:
            told.append(self)
            return self

    monkeypatch.setattr("evaluation.engine.Progress", Told)
    write_task("colours", COLOURS)
    texts: dict[str, Any] = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "doc_to_choice": None,
    }
    texts["metric_list"] = [{"metric": "bits_per_byte", "aggregation": "bits_per_byte"}]
    write_task("texts", [{"text": "word " * 700}, {"text": "short"}], **texts)
    asked = {"name": "sums_answered", "modes": ["chat"], "subset": 2, "repeats": 2, "generation": {"max_gen_toks": 4}}
    suite = write_suite([{"name": "colours"}, {"name": "texts"}, asked])
    assert run(chat_model, suite, tmp_path / "out") == 0
    assert {(each.label, each.total) for each in told} == {
        ("writing prompts", 8),
        ("writing prompts", 2),
        ("likelihoods", 24),
        ("likelihoods of texts", 4),
        ("responses", 4),
    }
    assert all(each.done == each.total for each in told)
    assert run(chat_model, suite, tmp_path / "served", "--server", server.url) == 0
    said = capfd.readouterr()
    assert "it/s" not in said.err and "examples/s" not in said.err and "%|" not in said.err


def test_questions_that_are_too_long_are_counted_and_told(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task("colours", [{**row, "question": "very " * 600 * (number < 3) + "short"} for number, row in enumerate(COLOURS)])
    assert run(plain_model, write_suite([{"name": "colours"}]), tmp_path / "out") == 0
    assert record(tmp_path / "out")["tasks"]["colours"]["truncated"] == 3
    assert "colours: the model did not read the beginning of 3 questions: too long" in capsys.readouterr().err


def test_the_table_shows_each_score_with_its_interval_and_chance(
    plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task("colours", COLOURS)
    suite = write_suite([{"name": "colours", "metrics": ["acc", "gold_bits_per_byte"]}])
    assert run(plain_model, suite, tmp_path / "out") == 0
    said, made = capsys.readouterr().out, record(tmp_path / "out")
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.startswith("eval/")}
    assert rows.keys() == made["results"].keys() and len(rows) == 2
    for name, row in rows.items():
        low, high = made["intervals"][name]
        chance = f"{1 / 3:.4f}" if name.endswith("/acc") else "-"
        assert row == [f"{made['results'][name]:.4f}", f"{low:.4f}", "..", f"{high:.4f}", chance]
    assert f"wrote {tmp_path / 'out' / 'results.json'} and the samples beside it" in said


@pytest.mark.parametrize("error", ["requests.ConnectionError('no route to far')", "LookupError('no route to punkt')"])
def test_what_another_server_than_the_hub_does_not_give_is_named(
    error: str, plain_model: Path, tmp_path: Path, write_suite: Write, write_task: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of RULER: questions of its own by requests, sentences by NLTK."""
    write_task("colours", COLOURS)
    (tmp_path / "tasks" / "far.py").write_text(f"import requests\ndef rows(**_): raise {error}\n")
    far = (tmp_path / "tasks" / "colours.yaml").read_text().replace("task: colours", "task: far")
    (tmp_path / "tasks" / "far.yaml").write_text(f"{far}custom_dataset: !function far.rows\n")
    assert run(plain_model, write_suite([{"name": "far"}, {"name": "colours"}]), tmp_path / "out") == 1
    assert record(tmp_path / "out")["not_run"].keys() == {"far"} and record(tmp_path / "out")["results"]
    assert "not run: far: no route to" in capsys.readouterr().err


@pytest.mark.slow
def test_an_unknown_task_is_answered_with_near_ones_among_lm_evals_own(
    plain_model: Path, tmp_path: Path, write_suite: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(plain_model, write_suite([{"name": "helaswag"}]), tmp_path / "out") == 2
    assert "tasks: 'helaswag' is none that lm-eval knows; did you mean 'hellaswag'" in capsys.readouterr().err


@pytest.mark.slow
def test_lm_evals_own_command_gives_the_same_scores(
    plain_model: Path, corpus: Path, tmp_path: Path, write_suite: Write
) -> None:
    data = {"text": str(corpus / "text" / "held_out"), "lengths": [128], "depths": [0.5], "each": 8}
    names = ["text_docs", "cloze_docs", "needle"]
    assert run(plain_model, write_suite([{"name": name} for name in names], data=data), tmp_path / "out") == 0
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "16"]
    command += ["--model_args", f"pretrained={plain_model},dtype=float32", "--tasks", ",".join(names)]
    command += ["--include_path", str(OFFLINE), "--metadata", json.dumps(data), "--output_path", str(tmp_path / "theirs")]
    subprocess.run(command, check=True, cwd=tmp_path)
    [path] = (tmp_path / "theirs").rglob("results_*.json")
    theirs, ours = json.loads(path.read_text())["results"], record(tmp_path / "out")["results"]
    for task in names:
        metrics = {key.partition(",")[0]: value for key, value in theirs[task].items() if key.endswith(",none")}
        shared = [metric for metric in metrics if f"eval/{task}/{metric}" in ours]
        assert shared
        for metric in shared:
            assert ours[f"eval/{task}/{metric}"] == pytest.approx(metrics[metric], rel=1e-9), (task, metric)


@pytest.mark.slow
def test_lm_evals_own_command_writes_and_scores_the_same_chat(chat_model: Path, tmp_path: Path, write_suite: Write) -> None:
    """The template, its system message and argument, and greedy answers, letter for letter."""
    short = {"max_gen_toks": 16}
    suite = write_suite([{"name": "instructions", "modes": ["no_think"], "generation": short}], system="Be brief.")
    assert run(chat_model, suite, tmp_path / "out") == 0
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "16"]
    command += ["--model_args", f"pretrained={chat_model},dtype=float32,enable_thinking=False", "--tasks", "instructions"]
    command += ["--apply_chat_template", "--system_instruction", "/no_think\n\nBe brief.", "--gen_kwargs", "max_gen_toks=16"]
    command += ["--include_path", str(OFFLINE), "--output_path", str(tmp_path / "theirs"), "--log_samples"]
    subprocess.run(command, check=True, cwd=tmp_path)
    [path] = (tmp_path / "theirs").rglob("results_*.json")
    theirs, ours = json.loads(path.read_text())["results"]["instructions"], record(tmp_path / "out")["results"]
    for metric in ("followed", "all_followed"):
        assert ours[f"eval/instructions/no_think/{metric}"] == pytest.approx(theirs[f"{metric},none"], rel=1e-9), metric
    [path] = (tmp_path / "theirs").rglob("samples_*.jsonl")
    answers = {line["doc_id"]: (line["prompt_hash"], line["resps"]) for line in lines(path)}
    found = lines(tmp_path / "out" / "samples" / "instructions_no_think.jsonl")
    assert {line["question"]: (line["prompt_sha256"], line["responses"]) for line in found} == answers
    assert len({line["responses"][0][0] for line in found}) > 1
