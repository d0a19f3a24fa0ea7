"""`inspect`: what it shows is what the loader feeds, in every stage, around skipped samples, and of a run that has begun."""

import json
import re
import shutil
import tracemalloc
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from document_files import Tool, python, read_documents, write_documents
from tokenizers import Tokenizer

from data_tools.rendering import border, window_text
from data_tools.run_config import load_data_run
from data_tools.windows_seen import Piece, SeenWindow, seen_windows
from smol_data.loader import TrainLoader
from smol_data.manifest import read_manifest
from smol_data.order import Location, Order, fingerprint
from smol_data.schedule import Segment, batch_at, resolve_segments, total_steps
from smol_data.shards import TokenDataset, open_datasets

LENGTH, BATCH = 64, 8


@pytest.fixture(scope="module")
def config(corpus: Path, tokenizer: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets (files, prose, and paragraphs as documents), two stages, a skipped range in the first."""
    from data_tools.__main__ import main

    folder = tmp_path_factory.mktemp("inspect")
    arguments = ["tokenize", str(corpus / "held_out" / "code"), str(folder / "code"), "--tokenizer", str(tokenizer)]
    assert main(arguments) == 0
    texts = [text for document in read_documents(corpus / "held_out" / "docs") for text in document["text"].split("\n\n")]
    write_documents(folder / "paragraphs.jsonl", [text for text in texts if text.strip()])
    arguments = ["tokenize", str(folder / "paragraphs.jsonl"), str(folder / "lines"), "--tokenizer", str(tokenizer)]
    assert main(arguments) == 0
    mapping = {
        "data": {
            "tokenizer": str(tokenizer),
            "sequence_length": LENGTH,
            "seed": 3,
            "datasets": {"code": str(folder / "code"), "docs": str(tokens), "lines": str(folder / "lines")},
            "stages": [
                {"name": "stable", "steps": 5, "weights": {"code": 0.4, "docs": 0.2, "lines": 0.4}},
                {"name": "decay", "tokens": 3 * BATCH * LENGTH, "weights": {"docs": 3, "lines": 7}},
            ],
            "skip_samples": [[17, 19]],
        },
        "train": {"global_batch_size": BATCH},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(mapping), encoding="utf8")
    return path


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def text_of(seen: dict[str, Any]) -> str:
    return "".join(document["text"] for document in seen["documents"])


def left_out(seen: dict[str, Any]) -> list[int]:
    """Places in the window of the targets that are marked as left out of the loss."""
    places, at = [], 0
    for document in seen["documents"]:
        if document["masked"]:
            places.append(at)
        at += document["end"] - document["first"]
    return places


def fed(config: Path, segments: list[Segment], first_step: int) -> list[list[tuple[list[int], list[int]]]]:
    """Per step the windows that the loader feeds: ids [S + 1], and places of the targets that its loss mask leaves out."""
    data = load_data_run(config).data
    loader = TrainLoader(data, segments, 4, rank=0, world_size=1, device=torch.device("cpu"), start_step=first_step)
    steps = []
    for step in range(first_step, total_steps(segments)):
        windows = []
        for _ in range(loader.micro_batches(step)):
            batch = next(loader)
            rows = torch.cat([batch.tokens.view(-1, LENGTH), batch.labels.view(-1, LENGTH)[:, -1:]], dim=1)
            for ids, mask in zip(rows, batch.loss_mask.view(-1, LENGTH), strict=True):
                windows.append((ids.tolist(), (torch.nonzero(mask == 0).view(-1) + 1).tolist()))
        steps.append(windows)
    loader.close()
    return steps


def test_every_step_shows_the_text_and_the_masked_targets_that_the_loader_feeds(
    tool: Tool, config: Path, tokenizer: Path
) -> None:
    decoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    segments = load_data_run(config).segments()
    assert [segment.stage for segment in segments] == ["stable", "stable", "decay"]  # the skipped range cuts the first
    masked = 0
    for step, windows in enumerate(fed(config, segments, 0)):
        outcome = tool("inspect", "--config", config, "--step", step + 1, "--json", "--limit", 99)
        assert outcome.code == 0, outcome
        seen = objects(outcome.out)
        batch = batch_at(segments, step)
        assert [(one["sample"], one["step"], one["stage"]) for one in seen] == [
            (sample, step + 1, batch.stage) for sample in range(batch.first_sample, batch.first_sample + BATCH)
        ]
        for one, (ids, places) in zip(seen, windows, strict=True):
            assert text_of(one) == decoder.decode(ids, skip_special_tokens=False)
            assert left_out(one) == places
            assert (one["tokens"], one["targets"]) == (LENGTH, LENGTH - len(places))
            masked += len(places)
    assert masked > 30  # else the test has compared nothing


def test_a_location_is_the_orders_and_documents_are_the_indexs(tool: Tool, config: Path) -> None:
    data = load_data_run(config).data
    segments = load_data_run(config).segments()
    datasets = open_datasets(data.datasets, LENGTH, data.tokenizer)
    order = Order(segments, data.seed, {name: dataset.num_windows for name, dataset in datasets.items()})
    outcome = tool("inspect", "--config", config, "--samples", "24:40", "--json", "--no-text")
    seen = objects(outcome.out)
    assert [one["sample"] for one in seen] == list(range(24, 40))
    for one in seen:
        place = order.locate(one["sample"])
        assert {name: one[name] for name in Location._fields} == place._asdict()
        dataset = datasets[place.dataset]
        assert one["first_token"] == place.window * LENGTH
        at = one["first_token"]
        for document in one["documents"]:
            assert "text" not in document
            assert document["document"] == dataset.files.document_at(at)
            ids = dataset.files.tokens(at - document["first"], document["length"])  # the whole document
            eos = dataset.manifest.eos_id
            assert (ids[-1], (ids[:-1] == eos).any()) == (eos, False)
            at += document["end"] - document["first"]
        assert at == one["first_token"] + LENGTH + 1


def test_a_step_in_the_millions_is_answered_from_its_number_alone(tool: Tool, config: Path) -> None:
    settings = ["data.stages.0.steps=3000000", "data.stages.1.tokens=100000000000", "train.global_batch_size=576"]
    data_run = load_data_run(config, settings)
    batch = batch_at(data_run.segments(), 3_100_000)
    tracemalloc.start()
    outcome = tool("inspect", "--config", config, "--step", 3_100_001, "--json", "--no-text", *settings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    seen = objects(outcome.out)
    assert [one["sample"] for one in seen] == list(range(batch.first_sample, batch.first_sample + 576))
    assert batch.first_sample > 1_700_000_000
    assert {one["stage"] for one in seen} == {"decay"}
    assert min(one["epoch"] for one in seen) > 1000
    assert peak < 20e6  # bytes; the samples before are 1.8 thousand million


def test_help_gives_examples_at_once(tool: Tool) -> None:
    for command in ("inspect", "stats", "mixture"):
        outcome = tool(command, "--help")
        assert outcome.code == 0
        assert f"example:\n  python -m data_tools {command} " in outcome.out
    code = "import sys; from data_tools.__main__ import build_parser; build_parser().format_help(); print(*sys.modules)"
    loaded = set(python("-c", code).out.split())
    assert {"data_tools.inspect_samples", "data_tools.stats", "data_tools.mixture"} <= loaded
    assert not {"torch", "matplotlib", "tokenizers", "transformers", "datatrove", "pyarrow"} & loaded


# --- a run that has begun ------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(config: Path, tmp_path: Path) -> Path:
    """A run's folder after 4 steps of 8 samples, which goes on with 16 samples a step; and an unfinished checkpoint."""
    from smol_train.checkpoint import MARKER, TrainState, folder_name

    mapping = yaml.safe_load(config.read_text(encoding="utf8"))
    data = load_data_run(config).data
    segments = load_data_run(config).segments()
    digests = {name: read_manifest(folder).digest for name, folder in data.datasets.items()}
    mapping["train"]["global_batch_size"] = 16
    for step in (2, 4, 5):
        checkpoint = tmp_path / "run" / folder_name(step)
        checkpoint.mkdir(parents=True)
        stored = fingerprint(segments, step, data.seed, LENGTH, digests)
        state = TrainState(step=step, samples=batch_at(segments, step).first_sample, data=stored)
        (checkpoint / "state.json").write_text(json.dumps(asdict(state)), encoding="utf8")
        (checkpoint / "run.yaml").write_text(yaml.safe_dump(mapping), encoding="utf8")
        if step < 5:
            (checkpoint / MARKER).write_text("")
    return tmp_path / "run"


def test_a_begun_run_is_shown_as_it_ran_and_as_it_goes_on(tool: Tool, config: Path, begun: Path, tokenizer: Path) -> None:
    data = load_data_run(config).data
    history = [segment for segment in load_data_run(config).segments() if segment.stage == "stable"]
    history = [history[0], Segment(**(asdict(history[1]) | {"steps": 4 - history[0].steps}))]
    segments = resolve_segments(data.stages, LENGTH, 16, data.skip_samples, history)
    decoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    assert [batch_at(segments, step).batch_size for step in (3, 4)] == [8, 16]
    for step, windows in enumerate(fed(config, segments, 0)):
        outcome = tool("inspect", "--run", begun, "--step", step + 1, "--json", "--limit", 99)
        assert outcome.code == 0, outcome
        assert [text_of(one) for one in objects(outcome.out)] == [decoder.decode(ids, False) for ids, _ in windows]
    newest = tool("inspect", "--run", begun / "iter_0000004", "--samples", "32:40", "--no-text").out
    assert tool("inspect", "--run", begun, "--samples", "32:40", "--no-text").out == newest


def test_a_begun_run_that_cannot_be_shown_is_refused(tool: Tool, config: Path, begun: Path, tmp_path: Path) -> None:
    newest = begun / "iter_0000004"
    stored = json.loads((newest / "state.json").read_text())
    ask = ("inspect", "--run", begun, "--step", "1")

    def refused(change: dict[str, Any] | None) -> str:
        text = "{" if change is None else json.dumps(stored | {"data": change})
        (newest / "state.json").write_text(text, encoding="utf8")
        outcome = tool(*ask)
        assert (outcome.code, outcome.out) == (2, "")
        return outcome.err

    assert "state.json cannot be read" in refused(None)
    assert "has consumed no data (converted weights?); give --config" in refused({})
    changed = stored["data"] | {"manifests": stored["data"]["manifests"] | {"docs": "f" * 64}}
    assert "is not the one that the run has consumed: manifest digest" in refused(changed)
    history = [segment | {"weights": {"code": 1, "gone": 1}} for segment in stored["data"]["history"]]
    assert "put them back" in refused(stored["data"] | {"history": history})  # the stage in the configuration differs
    assert "no whole checkpoint there; give a run's folder" in tool("inspect", "--run", tmp_path, "--step", "1").err
    run_yaml = yaml.safe_load((newest / "run.yaml").read_text())
    run_yaml["data"]["datasets"]["gone"] = run_yaml["data"]["datasets"].pop("docs")
    run_yaml["data"]["stages"] = [{"name": "later", "steps": 1, "weights": {"gone": 1}}]
    history = [segment | {"stage": "later", "weights": {"docs": 1}} for segment in stored["data"]["history"]]
    run_yaml["data"]["stages"][0]["weights"] = {"docs": 1}
    (newest / "run.yaml").write_text(yaml.safe_dump(run_yaml), encoding="utf8")
    assert "'docs' is not in data.datasets" in refused(stored["data"] | {"history": history})


# --- forms ---------------------------------------------------------------------------------------------------------------


def test_plain_text_has_a_table_and_marks_borders_and_masked_targets(tool: Tool, config: Path) -> None:
    outcome = tool("inspect", "--config", config, "--step", "3", "--limit", "5")
    heading, _, header, *rest = outcome.out.splitlines()
    assert heading == "step 3 of 8: samples 24 to 31, 8 windows of 64 tokens"
    assert header.split()[:6] == ["step", "sample", "stage", "dataset", "epoch", "window"]
    assert [line.split()[1] for line in rest[:8]] == [str(sample) for sample in range(24, 32)]
    assert outcome.out.count("\n=== step 3, sample ") == 5
    assert "text of 5 of 8 windows; --limit N shows more" in outcome.err
    seen = objects(tool("inspect", "--config", config, "--step", "3", "--json", "--limit", "5").out)[:5]
    documents = [document for one in seen for document in one["documents"]]
    assert outcome.out.count("\n--- document ") == len(documents)
    assert outcome.out.count("⟦") == sum(document["masked"] for document in documents) > 0
    plain = re.sub(r"\n---.*---\n|[⟦⟧]", "", outcome.out)
    assert all(text_of(one) in plain for one in seen)
    assert "\x1b" not in outcome.out
    without = tool("inspect", "--config", config, "--step", "3", "--no-text")
    assert without.out.splitlines() == outcome.out.splitlines()[:11]
    assert without.err == ""


def test_a_terminal_gets_colours_and_never_the_controls_of_a_text() -> None:
    import numpy as np

    piece = Piece(7, "a.ds", 0, 3, np.array([1, 2, 3]), masked=True)
    seen = SeenWindow(1, Location(0, "s", "d", 0, 0), 0, [piece], 2)
    texts = {1: "\x1b]0;title\x07", 2: "a\tb\n", 3: "\x9b31m"}

    def decode(ids: list[int]) -> str:
        return "".join(texts[i] for i in ids)

    coloured = list(window_text(seen, decode, colours=True))
    assert coloured[1] == f"\x1b[36m--- {border(piece)} ---\x1b[0m"
    assert coloured[2] == "\x1b[30;43m␛]0;title␇\x1b[0ma\tb\n\ufffd31m"
    assert list(window_text(seen, decode, colours=False))[2] == "⟦␛]0;title␇⟧a\tb\n\ufffd31m"


def test_html_is_one_file_complete_in_itself(tool: Tool, config: Path, tmp_path: Path) -> None:
    page = tmp_path / "step.html"
    outcome = tool("inspect", "--config", config, "--step", "3", "--html", page, "--limit", "3")
    assert (outcome.code, outcome.out) == (0, f"written: {page}\n")
    text = page.read_text(encoding="utf8")
    assert not re.search(r"(src|href)=\"(?!#)", text)  # nothing outside it is needed

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.shown, self.rows = False, "", 0

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.inside |= tag == "pre"
            self.rows += tag == "tr"

        def handle_endtag(self, tag: str) -> None:
            self.inside &= tag != "pre"

        def handle_data(self, data: str) -> None:
            self.shown += data if self.inside else ""

    reader = Reader()
    reader.feed(text)
    seen = objects(tool("inspect", "--config", config, "--step", "3", "--json").out)
    assert reader.shown == "".join(map(text_of, seen[:3]))
    assert reader.rows == 1 + 8
    masked = sum(document["masked"] for one in seen[:3] for document in one["documents"])
    assert text.count("<mark title=") == masked


def test_a_disk_that_refuses_leaves_no_page(tool: Tool, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, text: str, **_: Any) -> None:
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    outcome = tool("inspect", "--config", config, "--step", "3", "--html", tmp_path / "page.html")
    assert (outcome.code, "page.html cannot be written: No space left on device" in outcome.err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_without_its_tokenizer_ids_are_shown(tool: Tool, tokenizer: Path, tmp_path: Path) -> None:
    gone = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    source = write_documents(tmp_path / "a.jsonl", ["one two three four five six seven eight nine ten " * 20])
    assert tool("tokenize", source, tmp_path / "tokens", "--tokenizer", gone).code == 0
    config = tmp_path / "config.yaml"
    data = {"tokenizer": str(gone), "sequence_length": 8, "datasets": {"a": str(tmp_path / "tokens")}}
    data["stages"] = [{"name": "s", "steps": 1, "weights": {"a": 1}}]
    config.write_text(yaml.safe_dump({"data": data, "train": {"global_batch_size": 1}}), encoding="utf8")
    shutil.rmtree(gone)
    outcome = tool("inspect", "--config", config, "--step", "1", "--json")
    (seen,) = objects(outcome.out)
    dataset = TokenDataset(tmp_path / "tokens", 8)
    assert [i for document in seen["documents"] for i in document["ids"]] == dataset.window(seen["window"]).tokens.tolist()
    assert "ids instead of text: data.tokenizer" in outcome.err
    plain = tool("inspect", "--config", config, "--step", "1")
    assert " ".join(map(str, seen["documents"][0]["ids"])) in plain.out

    shutil.copytree(tokenizer, gone)
    changed = json.loads((gone / "tokenizer.json").read_text())
    (gone / "tokenizer.json").write_text(json.dumps(changed, indent=7))
    assert "was made by tokenizer" in tool("inspect", "--config", config, "--step", "1").err  # a folder is compared by hash


def test_bad_input_is_refused_with_one_sentence(tool: Tool, config: Path, tmp_path: Path) -> None:
    html = tmp_path / "none" / "page.html"
    for arguments, sentence in (
        (("--step", "0"), "--step 0: the run has the steps 1 to 8; give one of them or lengthen data.stages"),
        (("--step", "9"), "--step 9: the run has the steps 1 to 8"),
        (("--samples", "16:20"), "sample 16 is not trained in this run: data.skip_samples, in whole global batches"),
        (("--samples", "8:30"), "sample 16 is not trained in this run"),
        (("--samples", "70:99"), "sample 72 is outside the run, whose samples end before 72"),
        (("--samples", "0:70000"), "--samples 0:70000: 70,000 windows are too many at once; ask for 65,536 or fewer"),
        (("--samples", "5:5"), "'5:5' is not a range; give A:B with A below B"),
        (("--samples", "x"), "'x' is not a range"),
        (("--step", "1", "--html", html), f"the folder {html.parent} does not exist; make it first"),
        (("--step", "1", "--html", tmp_path), f"{tmp_path} is a folder; name a file"),
        (("--step", "1", "data.datasets.docs=/nowhere"), "/nowhere/manifest.json cannot be read"),
        (("--step", "1", "data.seeds=3"), "data.seeds: unknown key; did you mean 'seed'?"),
        ((), "one of the arguments --step --samples is required"),
    ):
        outcome = tool("inspect", "--config", config, *arguments)
        assert (outcome.code, outcome.out, sentence in outcome.err) == (2, "", True), (sentence, outcome)
    assert list(tmp_path.iterdir()) == []


def test_a_window_of_a_chunked_dataset_is_its_chunk(tokens: Path, tool: Tool, tmp_path: Path) -> None:
    shuffled = tmp_path / "shuffled"
    outcome = tool("shuffle", tokens, shuffled, "--seed", "1", "--sequence-length", "64")
    assert outcome.code == 0, outcome
    dataset = TokenDataset(shuffled, 64)
    segments = [Segment("s", {"shuffled": 1.0}, 0, 2, 0, 8)]
    for seen in seen_windows(segments, 0, {"shuffled": dataset}, 0, 16):
        assert seen.first_token == 65 * seen.location.window
        assert seen.ids.tolist() == dataset.files.tokens(seen.first_token, 65).tolist()
        ends = [piece.end for piece in seen.pieces]
        assert ends == [piece.length for piece in seen.pieces]  # every document of a chunk ends inside it
        assert [piece.masked for piece in seen.pieces] == [False] + [True] * (len(ends) - 1)
    dataset.close()
