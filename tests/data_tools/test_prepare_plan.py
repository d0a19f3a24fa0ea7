"""`prepare --dry-run` and bad input: what is to be done is shown, and nothing changes."""

from pathlib import Path

import pytest
from document_files import Tool, contents, write_documents
from prepare_place import Place

from smol_data.manifest import read_manifest


@pytest.fixture
def place(tmp_path: Path, corpus: Path, tokenizer: Path) -> Place:
    return Place(tmp_path, corpus, tokenizer)


def test_the_plan_changes_nothing_and_needs_no_network(tool: Tool, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_config(["code", "docs", "secret"])
    write_documents(place.text / "code" / "mine.jsonl", ["own"])
    before = contents(place.root)
    outcome = tool(*place.arguments("--dry-run", "data.tokenizer=far/away", mirror=False))
    assert outcome.code == 0, outcome
    assert contents(place.root) == before
    rows = {line.split("  ")[0]: " ".join(line.split()) for line in outcome.out.splitlines()}
    assert rows["code"] == "code text is here org/code - ? ? 8.53K psf-2.0"
    assert rows["docs"] == "docs fetch org/docs 2.0 GB 5.00K 0.0 GB 8.53K ?"
    assert rows["secret"].startswith("secret not preparable - - ?")
    assert rows["to do"] == "to do 2.0 GB 0.0 GB + ?"
    assert "not preparable: secret: its content is not published (never shown to anyone)" in outcome.out
    assert "free where text will lie" in outcome.out


def test_finished_folders_show_in_the_plan_what_they_hold(tool: Tool, place: Place) -> None:
    assert tool(*place.arguments("--datasets", "docs")).code == 0
    outcome = tool(*place.arguments("--dry-run"))
    row = next(line for line in outcome.out.splitlines() if line.startswith("docs"))
    assert "finished" in row
    tokens = read_manifest(place.tokens / "docs").tokens
    assert f"{tokens / 1000:.{1 if tokens < 99_950 else 0}f}K" in row


def test_bad_input_is_refused_with_one_sentence(tool: Tool, place: Place) -> None:
    before = contents(place.root)
    for more, sentence in (
        (("--datasets", "cod"), "--datasets cod: not in data.datasets or data.held_out; did you mean 'code'?"),
        (("--held-out-share", "0"), "--held-out-share 0 leaves no document for data.held_out of code; give a share above 0"),
        (("--held-out-share", "0.9"), "0.9 is not a share from 0 to 0.5"),
        (("--held-out-share", "x"), "'x' is not a number"),
        (("--catalogue", place.root / "no.yaml"), "no.yaml cannot be read"),
        (("data.tokenizer=/nowhere",), "--tokenizer /nowhere is not a folder"),
        (("--executor", "slurm"), "--executor slurm: --slurm names no partition and no time"),
        (("--executor", "slurm", "--slurm", "partition"), "--slurm partition: 'partition' is not of the form key=value"),
        ((f"data.held_out.code={place.tokens}/code",), "data.held_out.code is the folder that data.datasets.code trains on"),
    ):
        outcome = tool(*place.arguments(*more))
        assert (outcome.code, sentence in outcome.err) == (2, True), (more, outcome)
    assert contents(place.root) == before
