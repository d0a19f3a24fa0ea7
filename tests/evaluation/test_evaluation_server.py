"""`run --server`: the scores of the transformers engine from a server, and what becomes of a run whose server fails."""

import re
from pathlib import Path

import pytest
from completions_server import CompletionsServer, Fault
from evaluation_parts import COLOURS, Write, lines, record, run


def test_a_server_gives_the_scores_of_the_transformers_engine(
    chat_model: Path, corpus: Path, tmp_path: Path, write_suite: Write, write_task: Write, server: CompletionsServer
) -> None:
    long = [{**row, "question": "very " * 600 * (number < 3) + row["question"]} for number, row in enumerate(COLOURS)]
    write_task("colours", long)
    data = {"text": str(corpus / "text" / "held_out"), "lengths": [128], "depths": [0.5], "each": 2}
    short = {"subset": 4, "generation": {"max_gen_toks": 12, "until": ["e"]}}
    tasks = [
        {"name": "text_docs", "subset": 3},
        {"name": "cloze_docs", "subset": 4},
        {"name": "sums", "subset": 10},
        {"name": "needle"},
        {"name": "colours", "form": "cf"},
        {"name": "colours", "form": "mcf"},
        {"name": "instructions", "modes": ["think", "no_think"], **short},
        {"name": "think_follow", "modes": ["chat"], "subset": 2, "generation": {"max_gen_toks": 6}},
    ]
    for context, reads in ((514, None), (130, 128)):  # a server that reads what the model does, and one that reads less
        server.models["data"][0]["max_model_len"] = context
        suite = write_suite([*tasks, {"name": "text_code", "subset": 2}], data=data, max_length=reads)
        assert run(chat_model, suite, tmp_path / f"own_{context}") == 0
        suite = write_suite([*tasks, {"name": "text_code", "subset": 2}], data=data)
        assert run(chat_model, suite, tmp_path / f"served_{context}", "--server", server.url, "--concurrency", "4") == 0
        own, served = record(tmp_path / f"own_{context}"), record(tmp_path / f"served_{context}")
        assert len(own["results"]) > 25 and served["results"] == pytest.approx(own["results"], abs=1e-4)
        assert served["tasks"] == own["tasks"] and own["tasks"]["colours"]["truncated"] == 3
        for path in sorted((tmp_path / f"own_{context}" / "samples").iterdir()):
            for one, other in zip(lines(path), lines(tmp_path / f"served_{context}" / "samples" / path.name), strict=True):
                if isinstance(one["responses"][0][0], str):
                    assert one["responses"] == other["responses"]
    assert served["engine"] == {"name": "server", "url": server.url, "served_model": "small"} and served["device"] is None
    assert own["engine"] == {"name": "transformers"} and own["device"] == "cpu"
    assert server.keys == {None} and not list(tmp_path.glob("*.answers.jsonl"))


def test_each_response_to_a_question_has_its_own_seed(
    chat_model: Path, tmp_path: Path, write_suite: Write, server: CompletionsServer
) -> None:
    task = {"name": "sums_answered", "modes": ["chat"], "subset": 2, "repeats": 3, "generation": {"max_gen_toks": 8}}
    assert run(chat_model, write_suite([task], seed=5), tmp_path / "out", "--server", server.url) == 0
    assert sorted(body["seed"] for body in server.requests) == [5, 5, 6, 6, 7, 7]
    assert all(body["temperature"] == 0.6 and body["top_p"] == 0.95 for body in server.requests)
    [first, _] = lines(tmp_path / "out" / "samples" / "sums_answered_chat.jsonl")
    assert len({*first["responses"][0]}) == 3


def test_a_task_that_says_nothing_of_sampling_is_answered_greedily(
    chat_model: Path, tmp_path: Path, write_suite: Write, write_task: Write, server: CompletionsServer
) -> None:
    scored = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    settings = {"output_type": "generate_until", "doc_to_choice": None, "metric_list": scored}
    write_task("said", COLOURS[:1], **settings, generation_kwargs={"until": ["e"], "max_gen_toks": 4})
    server.fault = lambda number: (200, b'{"choices": [{"text": "cut here"}]}', {})  # a server that knows no stop words
    assert run(chat_model, write_suite([{"name": "said"}]), tmp_path / "out", "--server", server.url) == 0
    [body] = server.requests
    assert (body["temperature"], body["max_tokens"], body["stop"]) == (0.0, 4, ["e"])
    assert lines(tmp_path / "out" / "samples" / "said.jsonl")[0]["responses"] == [["cut h"]]


def test_a_server_that_is_busy_breaks_off_or_talks_nonsense_is_asked_again(
    chat_model: Path,
    tmp_path: Path,
    write_suite: Write,
    write_task: Write,
    server: CompletionsServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults: dict[int, Fault] = {
        1: (429, b"slow down", {"retry-after": "7"}),
        2: (503, b"loading", {"retry-after": "9999"}),
        3: (0, b'{"choices', {}),
        4: (200, b"<html>no", {}),
        6: (503, b"loading", {"retry-after": "Mon, 1 Jan"}),
    }
    server.fault = faults.get
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    write_task("colours", COLOURS)
    url = server.url.replace("http://", "http://someone:password@")
    more = ("--server", f"{url}/", "--served-model", "small", "--concurrency", "1")
    assert run(chat_model, write_suite([{"name": "colours"}]), tmp_path / "out", *more) == 0
    assert len(server.requests) == 24 + 5 and server.waits == [7, 60, 4, 8, 1] and server.most_busy == 1
    said = (tmp_path / "out" / "results.json").read_text()
    assert "password" not in said and "secret" not in said and record(tmp_path / "out")["engine"]["url"] == server.url


def test_a_server_that_dies_is_told_and_what_it_answered_is_not_asked_again(
    chat_model: Path,
    tmp_path: Path,
    write_suite: Write,
    write_task: Write,
    server: CompletionsServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_task("colours", COLOURS)
    suite, out, kept = write_suite([{"name": "colours"}]), tmp_path / "out", tmp_path / "out.answers.jsonl"
    server.fault = lambda number: (0, b"", {}) if number > 10 else None
    assert run(chat_model, suite, out, "--server", server.url, "--concurrency", "3") == 2
    said = capsys.readouterr().err
    assert f"error: small at {server.url} gave no answer in 5 attempts (RemoteProtocolError" in said
    [answers] = re.findall(rf"give the command again: its (\d+) answers are in {kept} and are not asked for again", said)
    assert 8 <= int(answers) <= 10, "two of three at once may still be on their way"
    assert sorted(path.name for path in tmp_path.glob("out*")) == [kept.name]
    with kept.open("a") as file:
        file.write('\n["half a li')
    server.fault = lambda number: None
    server.requests.clear()
    assert run(chat_model, suite, out, "--server", server.url) == 0
    asked = {str(body["prompt"]) for body in server.requests}  # one that the first try had sent may arrive late
    assert len(asked) == 24 - int(answers) and sorted(path.name for path in tmp_path.glob("out*")) == ["out"]
    assert run(chat_model, suite, tmp_path / "own") == 0
    assert record(out)["results"] == pytest.approx(record(tmp_path / "own")["results"], abs=1e-4)


LACKING = [b'{"choices": [{"text": "x", "logprobs": null}]}', b'{"choices": [{"logprobs": {"token_logprobs": [-1.0]}}]}']
LACKING += [b'{"choices": [{"logprobs": {"token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}]}}]}']


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        *(
            ((200, body, {}), "gives no log-probabilities of the prompt, which echo and logprobs ask for; take")
            for body in LACKING
        ),
        ((400, b"too long", {}), "refuses a request: 400 too long; mend what it says\n"),
        ((401, b"no key", {}), "refuses a request: 401 no key; mend what it says\n"),
        ((200, b'{"choices": []}', {}), "gave no answer in 5 attempts (_NoAnswer list index out of range: '{\"choices\": []}'"),
        ((500, b"out of\nmemory", {}), "gave no answer in 5 attempts (500 out of memory); see to the server"),
    ],
)
def test_a_server_that_cannot_answer_is_one_sentence(
    fault: Fault,
    sentence: str,
    chat_model: Path,
    tmp_path: Path,
    write_suite: Write,
    write_task: Write,
    server: CompletionsServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_task("colours", COLOURS)
    server.fault = lambda number: fault
    assert run(chat_model, write_suite([{"name": "colours"}]), tmp_path / "out", "--server", server.url) == 2
    said = capsys.readouterr().err
    assert f"error: small at {server.url} {sentence}" in said and "Traceback" not in said
    assert not list(tmp_path.glob("out*"))


def test_text_that_is_none_is_no_answer(
    chat_model: Path, tmp_path: Path, write_suite: Write, server: CompletionsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fault = lambda number: (200, b'{"choices": [{"text": null}]}', {})
    task = {"name": "instructions", "modes": ["chat"], "subset": 1, "generation": {"max_gen_toks": 8}}
    assert run(chat_model, write_suite([task]), tmp_path / "out", "--server", server.url) == 2
    assert "gave no answer in 5 attempts (_NoAnswer text is none" in capsys.readouterr().err


def test_a_server_or_model_that_is_not_there_is_one_sentence(
    chat_model: Path,
    tmp_path: Path,
    write_suite: Write,
    write_task: Write,
    server: CompletionsServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_task("colours", COLOURS)
    suite = write_suite([{"name": "colours"}])

    def refused(sentence: str, *more: str) -> None:
        assert run(chat_model, suite, tmp_path / "out", *more) == 2
        assert sentence in capsys.readouterr().err and not list(tmp_path.glob("out*")) and not server.requests

    refused("--served-model is a name at a server; give --server too", "--served-model", "small")
    refused("--served-model 'smal' is none that", "--server", server.url, "--served-model", "smal")
    refused("404 {", "--server", server.url.removesuffix("/v1"))
    refused("give the address that ends in /v1, and OPENAI_API_KEY", "--server", f"{server.url}/chat")
    refused("--server http://127.0.0.1:9/v1: no list of models (ConnectError", "--server", "http://127.0.0.1:9/v1")
    refused("no list of models (UnsupportedProtocol", "--server", "localhost/v1")
    server.models = {"data": [{"id": "small"}, {"id": "other"}]}
    refused(f"--server {server.url} serves other, small; choose by --served-model", "--server", server.url)
    server.models = {"data": []}
    refused(f"--server {server.url} serves no model; choose", "--server", server.url)
    server.models = {"models": []}
    refused(f"--server {server.url}: no list of models (KeyError 'data'); start it, or mend", "--server", server.url)


@pytest.mark.parametrize(
    ("generation", "sentence"),
    [
        ({"max_gen_toks": 512}, "task instructions: max_gen_toks: 512 leaves no room for the question in 512 tokens; lower it"),
        ({"do_sample": True}, "task instructions: do_sample without temperature; give both in generation"),
    ],
)
def test_responses_that_no_engine_can_give_are_refused(
    generation: dict[str, object],
    sentence: str,
    chat_model: Path,
    tmp_path: Path,
    write_suite: Write,
    server: CompletionsServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    suite = write_suite([{"name": "instructions", "modes": ["chat"], "subset": 1, "generation": generation}])
    for more in ([], ["--server", server.url]):
        assert run(chat_model, suite, tmp_path / "out", *more) == 2
        assert sentence in capsys.readouterr().err and not list(tmp_path.glob("out*"))
