"""`synth`: what is made of answers, and what happens when the server does not answer."""

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_server import Answer, ChatServer, said
from chats import write_rows

from post_training.__main__ import main
from post_training.config import Source
from post_training.normalise import Normaliser
from post_training.sources import find, records
from post_training.synth import client, makers
from post_training.synth.config import SynthConfig
from smol_config import UserError, load

QUESTIONS = ["Which tide comes next?", "What is 3 and 4?", "Who winds the clock?", "Is it late?"]


def strong_and_weak(body: dict[str, Any]) -> Answer:
    asked = body["messages"][-1]["content"]
    if body["model"] == "strong":
        return said(f"Surely: {asked}", reasoning_content="Let me see.")
    return said(f"<think>\nHm.\n</think>\nPerhaps: {asked}")


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any]], Answer]], ChatServer]]:
    started: list[ChatServer] = []

    def start(answer: Callable[[dict[str, Any]], Answer]) -> ChatServer:
        started.append(ChatServer(answer))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, of which none is waited for."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(client, "sleep", sleep)
    return waits


def write_config(folder: Path, url: str, kind: str = "pairs", rows: list[dict[str, Any]] | None = None, **more: Any) -> Path:
    """A configuration in `folder`; `rows` are the prompts."""
    path = write_rows(folder / "prompts.jsonl", rows or [{"prompt": question} for question in QUESTIONS])
    config: dict[str, Any] = {
        "kind": kind,
        "prompts": {"name": "asked", "kind": "prompts", "path": str(path), "mode": "think"},
        "output_dir": str(folder / "out"),
        "model": {"url": url, "model": "strong", "price": {"input": 1.0, "output": 2.0}},
        "concurrent": 2,
        "attempts": 3,
    }
    if kind == "pairs":
        config["weak"] = {"url": url, "model": "weak"}
    for key, value in more.items():
        config[key] = config.get(key, {}) | value if isinstance(value, dict) else value
    (folder / "synth.yaml").write_text(yaml.safe_dump(config))
    return folder / "synth.yaml"


def synth(config: Path, *overrides: str) -> int:
    return main(["synth", "--config", str(config), *overrides])


def rows(folder: Path, name: str = "rows.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / name).read_text().splitlines()]


def samples(folder: Path, kind: str) -> list[Any]:
    """The rows as preparation reads them."""
    source = Source.model_validate({"name": "made", "path": str(folder / "out/rows.jsonl"), "kind": kind})
    normalise = Normaliser(source)
    return [normalise(record) for _, record in records(source, find(source).files[0])]


# --- pairs -------------------------------------------------------------------------------------------------------------------


def test_pairs_are_a_strong_models_answer_and_a_weak_ones(serve: Any, tmp_path: Path, capsys: Any) -> None:
    server = serve(strong_and_weak)
    assert synth(write_config(tmp_path, server.url)) == 0
    found = samples(tmp_path, "preference")
    assert sorted(sample.messages[0]["content"] for sample in found) == sorted(QUESTIONS)
    for sample in found:
        asked = sample.messages[0]["content"]
        assert sample.mode == "think"
        assert sample.chosen == {"role": "assistant", "content": f"Surely: {asked}", "reasoning_content": "Let me see."}
        assert sample.rejected == {"role": "assistant", "content": f"Perhaps: {asked}", "reasoning_content": "Hm."}
    assert {request["path"] for request in server.requests} == {"/v1/chat/completions"}
    assert all(request["chat_template_kwargs"] == {"enable_thinking": True} for request in server.requests)
    told = capsys.readouterr().out
    assert "wrote" in told and re.search(r"strong\s+80\s+40\s+0\.00\n", told) and re.search(r"weak\s+80\s+40\s+\?", told)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["kept"] == 4 and report["models"]["model"]["dollars"] == pytest.approx((80 + 2 * 40) / 1e6)


def test_each_request_has_a_seed_of_its_own_and_the_same_one_each_time(serve: Any, tmp_path: Path) -> None:
    server = serve(strong_and_weak)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert synth(write_config(tmp_path / name, server.url)) == 0
    seeds = sorted(request["seed"] for request in server.requests)
    assert seeds[::2] == seeds[1::2] and len(set(seeds)) == 8 and max(seeds) < 2**31
    assert sorted(map(str, rows(tmp_path / "a"))) == sorted(map(str, rows(tmp_path / "b")))


def test_the_mode_and_the_key_are_said_as_the_endpoint_wants_them(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTH_KEY", "abc")
    server = serve(lambda body: said(f"{body['model']}, gladly."))
    prompts = {"mode": "no_think"}
    ask = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    config = write_config(
        tmp_path, server.url, rows=[{"prompt": ask}], prompts=prompts, model={"mode_by": "system", "key": "SYNTH_KEY"}
    )
    assert synth(config, "weak.mode_by=none") == 0
    by_system, by_none = server.requests
    assert by_system["messages"] == [{"role": "system", "content": "Be brief.\n/no_think"}, ask[1]]
    assert by_none["messages"] == ask and "chat_template_kwargs" not in by_none
    assert by_system["headers"]["authorization"] == "Bearer abc" and "authorization" not in by_none["headers"]
    assert "abc" not in (tmp_path / "out/run.yaml").read_text()
    assert samples(tmp_path, "preference")[0].mode == "no_think" and rows(tmp_path)[0]["prompt"] == ask


@pytest.mark.parametrize(
    ("answer", "kind", "why"),
    [
        (said("The tide", finish="length"), "cut", "an answer does not end within max_tokens=8192"),
        (said("<think>\nThe tide"), "cut", "does not end"),
        (said("", reasoning_content="Hm."), "empty", "an answer is empty"),
        (said("The ebb."), "not in its mode", "an answer does not reason in /think"),
        (said("The ebb.", reasoning="Hm."), "same", "both answers are the same"),
        ((400, b"too long", {}), "refused by the server", "400: too long"),
    ],
)
def test_answers_that_cannot_be_used_are_left_out_with_the_reason(
    answer: Answer, kind: str, why: str, serve: Any, tmp_path: Path, capsys: Any
) -> None:
    server = serve(lambda body: answer)
    config = write_config(tmp_path, server.url)
    assert synth(config) == 2
    assert f"no prompt gave a row; {tmp_path}/out/left_out.jsonl says why of each" in capsys.readouterr().err
    found = rows(tmp_path, "left_out.jsonl")
    assert len(found) == 4 and all(line["kind"] == kind and why in line["why"] for line in found)
    asked = len(server.requests)
    assert synth(config) == 2 and len(server.requests) == asked  # not asked again


# --- a server in trouble -----------------------------------------------------------------------------------------------------


TROUBLE: dict[str, Answer] = {
    "busy": (429, b"slow down", {"retry-after": "7"}),
    "broken": (500, b"oops", {}),
    "garbage": (200, b"<html>", {}),
    "no choices": (200, b'{"choices": []}', {}),
    "no text": (200, b'{"choices": [{"message": {"content": 5}}]}', {}),
    "dies half-way": (0, b'{"choi', {}),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_that_passes_is_waited_for(name: str, serve: Any, tmp_path: Path, no_waits: list[float]) -> None:
    troubles = iter([TROUBLE[name]] * 2)
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> Answer:
        with lock:
            return next(troubles, None) or strong_and_weak(body)

    assert synth(write_config(tmp_path, serve(answer).url), "concurrent=1") == 0
    assert len(rows(tmp_path)) == 4
    assert no_waits == ([7, 7] if name == "busy" else [1, 2])


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_that_stays_ends_the_run_and_nothing_is_lost(name: str, serve: Any, tmp_path: Path, capsys: Any) -> None:
    """A server that dies after two pairs: they stay, and the others are made when it is back."""
    server = serve(lambda body: strong_and_weak(body) if len(server.requests) <= 4 else TROUBLE[name])
    config = write_config(tmp_path, server.url)
    assert synth(config, "concurrent=1") == 2
    assert re.search(
        r"error: strong at http\S+ gave no answer in 3 attempts \(.+\); see to the server", capsys.readouterr().err
    )
    before = (tmp_path / "out/rows.jsonl").read_bytes()
    assert before.count(b"\n") == 2
    server.answer, asked = strong_and_weak, len(server.requests)
    assert synth(config) == 0
    assert (tmp_path / "out/rows.jsonl").read_bytes().startswith(before) and len(rows(tmp_path)) == 4
    assert len(server.requests) == asked + 4
    assert json.loads((tmp_path / "out/report.json").read_text())["models"]["weak"]["input"] == 80  # of all commands


def test_a_server_that_is_not_there_and_a_wrong_key_end_the_run(serve: Any, tmp_path: Path, capsys: Any) -> None:
    server = serve(lambda body: (401, b"no such key", {}))
    assert synth(write_config(tmp_path, server.url)) == 2
    assert "401 no such key; mend the url, the model's name or the key" in capsys.readouterr().err
    assert len(server.requests) <= 2  # not tried again
    server.close()
    assert synth(write_config(tmp_path, server.url)) == 2
    assert "gave no answer in 3 attempts (ConnectError" in capsys.readouterr().err


def test_a_line_half_written_is_made_again(serve: Any, tmp_path: Path) -> None:
    server = serve(strong_and_weak)
    config = write_config(tmp_path, server.url)
    assert synth(config) == 0
    path = tmp_path / "out/rows.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert synth(config) == 0
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines()) and len(server.requests) == 8 + 2


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT does what it does at a terminal; a shell that starts tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_says_what_stays(serve: Any, tmp_path: Path, capsys: Any) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        if len(server.requests) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return strong_and_weak(body)

    server = serve(answer)
    config = write_config(tmp_path, server.url)
    assert synth(config, "concurrent=1") == 130
    assert "interrupted; 1 rows stay, give the command again to go on" in capsys.readouterr().out
    assert synth(config) == 0 and len(rows(tmp_path)) == 4


# --- graded ------------------------------------------------------------------------------------------------------------------


def test_the_best_and_the_worst_of_several_answers_are_a_pair(serve: Any, tmp_path: Path) -> None:
    """Graded by mathematics: one answer in four is right; nobody knows the second question."""
    lock, counts = threading.Lock(), {"2 + 2?": 0, "2 + 3?": 0}

    def answer(body: dict[str, Any]) -> Answer:
        asked = body["messages"][-1]["content"]
        with lock:
            counts[asked] += 1
            return said("It is 4." if asked == "2 + 2?" and counts[asked] == 3 else "It is 9.")

    asked = [{"prompt": "2 + 2?", "answer": "4"}, {"prompt": "2 + 3?", "answer": "5"}]
    graded = {"answers": 4, "rewards": {"accuracy": {}, "format": {"weight": 0.25}}}
    server = serve(answer)
    prompts = {"mode": "no_think", "keep": ["answer"]}
    assert synth(write_config(tmp_path, server.url, "graded", rows=asked, prompts=prompts, graded=graded)) == 0
    assert len({request["seed"] for request in server.requests}) == 8  # no answer is sampled twice
    (sample,) = samples(tmp_path, "preference")
    assert (sample.chosen["content"], sample.rejected["content"]) == ("It is 4.", "It is 9.")
    assert rows(tmp_path)[0]["worth"] == [1.25, 0.25] and rows(tmp_path)[0]["usage"] == {"model": [80, 40]}
    (left,) = rows(tmp_path, "left_out.jsonl")
    assert left["kind"] == "all alike" and left["why"] == "the answers are worth 0.25 to 0.25"


def test_answers_that_cannot_be_used_are_not_graded_and_a_lone_one_is_no_pair(serve: Any, tmp_path: Path) -> None:
    answers = iter([said("It is 4."), said("It", finish="length"), said("It", finish="length"), said("")])
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> Answer:
        with lock:
            return next(answers)

    graded = {"answers": 4, "rewards": {"format": {}}}
    prompts = {"mode": "no_think"}
    assert (
        synth(write_config(tmp_path, serve(answer).url, "graded", rows=[{"prompt": "a"}], prompts=prompts, graded=graded)) == 2
    )
    assert rows(tmp_path, "left_out.jsonl")[0]["kind"] == "too few answers"


# --- instructions ------------------------------------------------------------------------------------------------------------


def obedient(body: dict[str, Any]) -> str:
    """An answer that follows what all turns of the user ask for."""
    asked = " ".join(turn["content"] for turn in body["messages"] if turn["role"] == "user")
    words = re.findall(r'Use the word "(\w+)"', asked)
    bullets = re.search(r"exactly (\d) bullet points", asked)
    sentences = re.search(r"exactly (\d) sentences", asked)
    lines = [f"- {' '.join(['so it goes on and on here'] * 3)}"] * int(bullets[1]) if bullets else []
    lines += ["<<so it goes>>"] if "double angle brackets" in asked else []
    ending = re.search(r'End with the words "([^"]+)"', asked)
    count = int(sentences[1]) - bool(ending) if sentences else 0
    lines += [
        " ".join([*words, "so it goes on and on and on"]) + "." if count else " ".join([*words, *"so it goes on"] * 1)
    ] * max(count, 1)
    return "\n".join([*lines, *([ending[1]] if ending else [])])


def test_conversations_are_kept_whose_answers_follow_all_instructions_so_far(serve: Any, tmp_path: Path) -> None:
    """Every second answer disobeys, by saying nothing that was asked for."""
    lock, counts = threading.Lock(), iter(range(10**6))

    def answer(body: dict[str, Any]) -> Answer:
        with lock:
            number = next(counts)
        return said("," if number % 2 else obedient(body), reasoning_content="Let me see.")

    server = serve(answer)
    asked = [{"prompt": f"Write about {subject}."} for subject in ("rain", "snow", "hail", "fog", "wind", "sun")]
    settings = {"turns": 3, "added": 1, "tries": 4}
    assert synth(write_config(tmp_path, server.url, "instructions", rows=asked, instructions=settings), "concurrent=1") == 0
    found = rows(tmp_path)
    assert len(found) >= 3
    for row, sample in zip(found, samples(tmp_path, "chat"), strict=True):
        constraints = json.loads(row["constraints"])
        assert [turn["role"] for turn in sample.messages] == ["user", "assistant"] * 3 and sample.mode == "think"
        for turn in range(3):
            held = {"constraints": json.dumps(constraints[: turn + 1])}
            assert makers.score(held, [sample.messages[2 * turn + 1]["content"]])["all_followed"]
            kind, value = constraints[turn]
            assert makers.KINDS[kind].asks.format(value=value) in sample.messages[2 * turn]["content"]
    assert all(line["kind"] == "not followed" for line in rows(tmp_path, "left_out.jsonl"))


def test_instructions_that_are_never_followed_leave_the_conversation_out(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda body: said("", reasoning_content="Hm."))
    assert synth(write_config(tmp_path, server.url, "instructions", rows=[{"prompt": "a"}])) == 2
    (left,) = rows(tmp_path, "left_out.jsonl")
    assert left["kind"] == "not followed" and "an answer is empty, in 4 tries" in left["why"] and len(server.requests) == 4


def test_instructions_at_odds_are_not_asked_for_together() -> None:
    import random

    for seed in range(300):
        kinds = {kind for kind, _ in makers.draw_instructions(random.Random(seed), 4)}
        assert len(kinds) == 4 and not any(pair <= kinds for pair in makers.AT_ODDS)


# --- refusals ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"prompts": {"kind": "chat"}}, "prompts.kind=chat: answers are made to prompts; set kind: prompts"),
        ({"weak": None}, "kind=pairs and weak=None: pairs need a weak model, and only pairs"),
        ({"graded": {"rewards": {"format": {}}}}, "kind=pairs and graded=set: graded needs it, and nothing else"),
        ({"kind": "graded", "weak": None, "graded": {"rewards": {}}}, "graded.rewards: none is chosen"),
        (
            {"kind": "graded", "weak": None, "graded": {"rewards": {"accuracy": {}}}},
            r"graded.rewards.accuracy: prompts keep no column 'answer'; write keep: \[answer\]",
        ),
        ({"instructions": {"turns": 4, "added": 2}}, "instructions.turns=4 x added=2 are more than 6 instructions at once"),
        ({"model": {"url": "node:8000"}}, "model.url: String should match pattern"),
    ],
)
def test_settings_that_do_not_fit_are_refused(more: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = write_config(tmp_path, "http://127.0.0.1:1/v1", **more)
    with pytest.raises(UserError, match=sentence):
        load(SynthConfig, path)


def test_prompts_that_cannot_be_used_are_refused_unless_they_may_be_left_out(serve: Any, tmp_path: Path, capsys: Any) -> None:
    server = serve(strong_and_weak)
    asked = [{"prompt": "Why?"}, {"prompt": [{"role": "assistant", "content": "So."}]}, {"prompt": "Why?"}]
    config = write_config(tmp_path, server.url, rows=asked)
    assert synth(config) == 2
    told = capsys.readouterr().err
    assert "dataset asked: 1 rows cannot be used, such as row 1 of" in told and "let prompts.max_broken=0 allow them" in told
    assert not (tmp_path / "out").exists() and not server.requests
    assert synth(config, "prompts.max_broken=1") == 0 and len(rows(tmp_path)) == 1  # each prompt once


def test_a_folder_of_another_run_is_refused(serve: Any, tmp_path: Path, capsys: Any) -> None:
    server = serve(strong_and_weak)
    config = write_config(tmp_path, server.url)
    assert synth(config) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert synth(config, "model.temperature=1.0", "seed=3") == 2
    assert (
        "out was made with other settings (model, seed); put them back, or name another output_dir" in capsys.readouterr().err
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert synth(config, "concurrent=1", "attempts=9", "model.price.input=3.0") == 0


def test_a_folder_in_use_and_lines_that_are_no_rows_are_refused(serve: Any, tmp_path: Path, capsys: Any) -> None:
    from post_training.synth.rows import Rows

    config = write_config(tmp_path, serve(strong_and_weak).url)
    with Rows(load(SynthConfig, config)):
        assert synth(config) == 2
    assert "out is being written to by another synth; let it end, or name another folder" in capsys.readouterr().err
    (tmp_path / "out/rows.jsonl").write_text('{"id": 1}\n')
    assert synth(config) == 2
    assert "rows.jsonl: line 1 is no row ('usage'); take it out, and it is made again" in capsys.readouterr().err


def test_a_full_disk_ends_the_run_with_a_sentence(serve: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    from post_training.synth import rows as rows_module

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows_module.os, "fsync", full)
    assert synth(write_config(tmp_path, serve(strong_and_weak).url)) == 2
    assert (
        "rows.jsonl cannot be written (No space left on device); make room and give the command again"
        in capsys.readouterr().err
    )


def test_a_key_that_is_not_set_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert synth(write_config(tmp_path, "http://127.0.0.1:1/v1", model={"key": "NO_SUCH_KEY"})) == 2
    assert "key=NO_SUCH_KEY: no such environment variable is set; export NO_SUCH_KEY=... first" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pairs", "graded", "instructions"])
def test_the_examples_load(kind: str) -> None:
    from tiny_runs import REPOSITORY

    config = load(SynthConfig, REPOSITORY / f"configs/post_training/synth/{kind}.yaml", keep_unset=True)
    assert config.kind == kind
