"""`prepare`: repositories become verified token folders, nothing held out is trained on, what is missing is said."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from document_files import REPOSITORY, Tool, contents, python, write_documents
from hub_double import COMMIT, HubDouble, hub_double
from prepare_place import SHARE, Place, shared_text

from data_tools import hub_files, prepare
from smol_config import UserError


@pytest.fixture
def place(tmp_path: Path, corpus: Path, tokenizer: Path) -> Place:
    return Place(tmp_path, corpus, tokenizer)


@pytest.fixture
def server(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    monkeypatch.setattr(hub_files, "FIRST_WAIT", 0.01)
    with hub_double(place.mirror, monkeypatch) as double:
        yield double


def test_every_document_lands_on_its_side_and_only_there(tool: Tool, place: Place) -> None:
    outcome = tool(*place.arguments())
    assert outcome.code == 0, outcome
    out = place.held_out("code")
    assert 2 < len(out) < len(place.texts["code"]) / 4
    assert place.read("held_out/code") == sorted(out)
    assert place.read("code") == sorted(set(place.texts["code"]) - set(out))
    # docs are evaluated on nowhere, and yet no document of them that is held out anywhere is trained on
    assert place.read("docs") == sorted(set(place.texts["docs"]) - set(place.held_out("docs")))
    assert shared_text() in place.read("held_out/code")
    assert not any("too few stars" in text or "other language" in text for text in place.read("code") + out)
    lines = [line for line in outcome.out.splitlines() if line.startswith("ok:")]
    assert [line.split()[1] for line in lines] == ["code:", "code:", "docs:"]
    assert all("every byte checked" in line for line in lines)
    report = json.loads((place.tokens / "code/report.json").read_text())
    assert report["dropped"]["CatalogueRules: language"] == report["dropped"]["CatalogueRules: stars"] == 1
    assert report["dropped"]["HeldOut"] == len(out)


def test_given_again_it_checks_what_is_there_and_changes_nothing(tool: Tool, place: Place) -> None:
    assert tool(*place.arguments()).code == 0
    before = contents(place.root)
    again = tool(*place.arguments())
    assert again.code == 0, again
    assert contents(place.root) == before
    assert again.out.count("sizes and indexes checked") == 3
    assert "every byte checked" in tool(*place.arguments("--full-check")).out


def test_after_a_fault_it_goes_on_with_what_is_missing(tool: Tool, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = prepare.tokenize

    def without_held_out(settings: prepare.TokenizeSettings) -> Any:
        if "held_out" in str(settings.out_dir):
            raise UserError("the machine went down")
        return real(settings)

    monkeypatch.setattr(prepare, "tokenize", without_held_out)
    first = tool(*place.arguments())
    assert (first.code, "failed: code (org/code, 3 files" in first.err) == (2, True), first
    assert "1 of 2 datasets are not prepared (code); the lines above say what to do" in first.err
    assert (place.tokens / "docs/manifest.json").exists()
    made = contents(place.tokens)
    monkeypatch.setattr(prepare, "tokenize", real)
    second = tool(*place.arguments())
    assert second.code == 0, second
    assert {name: data for name, data in contents(place.tokens).items() if name in made} == made
    assert place.read("held_out/code") == sorted(place.held_out("code"))


def test_the_workers_change_no_byte(tool: Tool, place: Place, tmp_path: Path) -> None:
    assert tool(*place.arguments("--datasets", "code")).code == 0
    alone = contents(place.tokens)
    for folder in ("code", "held_out/code"):
        (place.tokens / folder).rename(tmp_path / folder.replace("/", "-"))
    done = python("-m", "data_tools", *place.arguments("--datasets", "code", "--workers", 2))
    assert done.code == 0, done.err
    assert contents(place.tokens) == alone


def test_what_is_missing_is_said_and_the_rest_is_done(tool: Tool, place: Place) -> None:
    place.write_config(["code", "docs", "secret", "unlisted"])
    (place.mirror / "org/code").rename(place.mirror / "org/gone")
    outcome = tool(*place.arguments())
    assert outcome.code == 2
    lines = [line for line in outcome.err.splitlines() if line.startswith(("missing", "failed", "error"))]
    assert lines[0].startswith("missing: code (org/code, files data/train-*.parquet): ")
    assert "org/code is not there; put a copy of the repository into the mirror" in lines[0]
    assert lines[1].startswith("missing: secret: its content is not published (never shown to anyone); put its text, assembled")
    assert lines[2].startswith("missing: unlisted: not in the catalogue; add it there, or put its text into ")
    assert lines[3].startswith("error: 3 of 4 datasets are not prepared (code, secret, unlisted)")
    assert place.read("docs")
    assert not (place.tokens / "code").exists()


def test_without_the_hub_every_dataset_is_named(tool: Tool, place: Place) -> None:
    outcome = tool(*place.arguments(mirror=False))  # HF_HUB_OFFLINE is set in tests
    assert outcome.code == 2
    lines = [line for line in outcome.err.splitlines() if line.startswith("missing: ")]
    assert [line.partition(" (")[0] for line in lines] == ["missing: code", "missing: docs"]
    assert all("the Hub is not within reach" in line and "give --hub-root" in line for line in lines)
    assert "docs (org/docs, files **/*.jsonl.gz, 2.0 GB)" in lines[1]


def test_from_the_hub_and_after_a_broken_download(tool: Tool, place: Place, server: HubDouble) -> None:
    server.faults = {"train-00001": [500] * 100}
    first = tool(*place.arguments(mirror=False))
    assert first.code == 2
    assert "missing: code (org/code, 3 files, " in first.err
    assert "in 6 tries; give the same command again to go on" in first.err
    assert place.read("docs")
    server.faults, server.requests = {"train-00001": [0]}, []
    second = tool(*place.arguments(mirror=False))
    assert second.code == 0, second
    assert set(server.downloads()) == {"train-00001.parquet"}
    assert place.read("held_out/code") == sorted(place.held_out("code"))
    source = json.loads((place.tokens / "code.source.json").read_text())
    assert (source["repository"], source["commit"], source["licence"], source["side"]) == (
        "org/code",
        COMMIT,
        "psf-2.0",
        "train",
    )
    assert (source["held_out_share"], source["seed"]) == (SHARE, 0)


def test_a_part_of_the_files_can_be_taken(tool: Tool, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_files, "GIGABYTE", 1000)
    size = sum(path.stat().st_size for path in (place.mirror / "org/code/data").iterdir()) // 1000
    assert tool(*place.arguments("--datasets", "code", "--max-gigabytes", size - 1)).code == 0
    assert len(list((place.text / "code/data").iterdir())) == 2
    refused = tool(*place.arguments("--datasets", "code"))
    assert refused.code == 2
    assert f"was made with max_gigabytes {size - 1}, asked for is None; ask for the former again, or remove" in refused.err


def test_own_text_is_taken_as_it_is_and_never_deleted(tool: Tool, place: Place) -> None:
    place.write_config(["secret", "unlisted"], held_out={})
    for name in ("secret", "unlisted"):
        write_documents(place.text / name / "mine.jsonl", [f"{name} {index}" for index in range(30)])
    outcome = tool(*place.arguments("--delete-text", mirror=False))
    assert outcome.code == 0, outcome
    for name in ("secret", "unlisted"):
        assert 20 < len(place.read(name)) <= 30
        assert (place.text / name / "mine.jsonl").exists()


def test_fetched_text_goes_when_asked_and_is_not_missed(tool: Tool, place: Place) -> None:
    mirror = contents(place.mirror)
    outcome = tool(*place.arguments("--delete-text"))
    assert outcome.code == 0, outcome
    assert not (place.text / "code").exists()
    assert not (place.text / "docs").exists()
    assert contents(place.mirror) == mirror
    again = tool(*place.arguments("--delete-text", mirror=False))
    assert again.code == 0, again
    assert not place.text.exists() or not contents(place.text)


def test_text_stays_while_one_of_its_folders_is_not_whole(tool: Tool, place: Place) -> None:
    assert tool(*place.arguments("--datasets", "code")).code == 0
    shard = next((place.tokens / "held_out/code").glob("*.ds"))
    shard.write_bytes(shard.read_bytes()[:-2])
    outcome = tool(*place.arguments("--datasets", "code", "--delete-text"))
    assert outcome.code == 2
    assert "held_out/code is damaged: " in outcome.err
    assert "remove the folder and give the same command again" in outcome.err
    assert (place.text / "code").exists()


def test_a_folder_made_otherwise_is_refused(tool: Tool, place: Place, tmp_path: Path) -> None:
    assert tool(*place.arguments("--datasets", "docs")).code == 0
    for more, sentence in (
        (("--seed", 1), "docs was made with seed 0, asked for is 1; ask for the former again, or remove the folder"),
        (("--held-out-share", 0.1), "docs was made with held_out_share 0.05, asked for is 0.1"),
    ):
        outcome = tool(*place.arguments("--datasets", "docs", *more))
        assert (outcome.code, sentence in outcome.err) == (2, True), outcome
    assert tool("train-tokenizer", place.mirror / "org/docs", tmp_path / "other", "--vocab-size", 300).code == 0
    outcome = tool(*place.arguments("--datasets", "docs", f"data.tokenizer={tmp_path / 'other'}"))
    assert outcome.code == 2
    assert "docs was made by tokenizer" in outcome.err
    assert "which is another; remove the folder, or name its tokenizer" in outcome.err


def test_a_folder_of_the_tokenize_command_is_taken_as_it_is(tool: Tool, place: Place) -> None:
    made = ("tokenize", place.mirror / "org/docs", place.tokens / "docs", "--tokenizer", place.tokenizer)
    assert tool(*made).code == 0
    before = contents(place.tokens)
    assert tool(*place.arguments("--datasets", "docs")).code == 0
    assert contents(place.tokens) == before


def test_an_interrupted_fetch_says_how_to_go_on(tool: Tool, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare.Hub, "fetch", interrupted)
    outcome = tool(*place.arguments())
    assert outcome.code == 130
    assert "interrupted; what is there is kept, and the same command goes on" in outcome.err


def test_a_full_disk_ends_the_command(tool: Tool, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare.Hub, "fetch", full)
    outcome = tool(*place.arguments())
    assert outcome.code == 2
    assert "code: [Errno 28] No space left on device; give the same command again when that is mended" in outcome.err
    assert "docs" not in outcome.err


def test_with_slurm_both_sides_are_submitted_and_nothing_is_deleted(
    tool: Tool, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[prepare.TokenizeSettings] = []
    monkeypatch.setattr(prepare, "tokenize", submitted.append)  # returns None, as after a submission
    monkeypatch.setattr("data_tools.executors.which", lambda name: f"/usr/bin/{name}")  # also where Slurm is not installed
    slurm = ("--executor", "slurm", "--slurm", "partition=cpu,time=1:00:00")
    outcome = tool(*place.arguments("--datasets", "code", "--delete-text", *slurm))
    assert outcome.code == 0, outcome
    assert [settings.out_dir for settings in submitted] == [place.tokens / "code", place.tokens / "held_out" / "code"]
    assert all(settings.executor == "slurm" for settings in submitted)
    assert all(settings.slurm == {"partition": "cpu", "time": "1:00:00"} for settings in submitted)
    assert "code: with Slurm; give the same command again when its jobs are done" in outcome.out
    assert (place.text / "code").exists()


def test_the_tokenizer_may_come_from_the_mirror(tool: Tool, place: Place) -> None:
    (place.mirror / "org/tokenizer").symlink_to(place.tokenizer)
    assert tool(*place.arguments("--datasets", "docs", "data.tokenizer=org/tokenizer")).code == 0
    assert place.read("docs")


def test_a_fetch_that_was_killed_at_once_is_not_taken_for_own_text(tool: Tool, place: Place) -> None:
    (place.text / "docs").mkdir(parents=True)
    (place.text / "docs" / ".listing.json.123.partial").write_text("{")
    assert tool(*place.arguments("--datasets", "docs")).code == 0
    assert place.read("docs")


def test_killed_and_given_again_it_makes_the_same_bytes(tool: Tool, place: Place, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_tools", *map(str, place.arguments("--workers", 2))]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    first, working = place.tokens / "code" / "manifest.json", place.tokens / ".code.partial"
    while not first.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert first.exists()
    (working / "parts").mkdir(parents=True, exist_ok=True)  # as it is while the command tidies up
    killed_at = contents(place.tokens / "code")
    outcome = tool(*place.arguments())
    assert outcome.code == 0, outcome
    assert contents(place.tokens / "code") == killed_at
    assert not working.exists()
    resumed = contents(place.tokens)
    place.tokens.rename(tmp_path / "resumed")
    assert tool(*place.arguments()).code == 0
    assert contents(place.tokens) == resumed
