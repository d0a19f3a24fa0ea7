"""The forms in which `inspect` shows windows: plain text, a terminal, HTML, ids without a tokenizer; and what it refuses."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from document_files import Tool, write_documents
from inspected_run import objects, text_of, write_run

from data_tools.rendering import border, window_text
from data_tools.windows_seen import Piece, SeenWindow, seen_windows
from smol_data.order import Location
from smol_data.schedule import Segment
from smol_data.shards import TokenDataset


@pytest.fixture(scope="module")
def config(corpus: Path, tokenizer: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("inspect"), corpus, tokenizer, tokens)


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
    def full(self: Path, data: bytes) -> None:
        self.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
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
