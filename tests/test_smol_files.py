"""Small files whole or not at all; logs of steps that a resume cuts."""

import json
from pathlib import Path

import pytest

from smol_files import keep_until, write_json, write_whole


def test_a_file_is_replaced_as_a_whole_with_what_a_killed_writer_left(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    (tmp_path / "note.json.partial").write_text("half of an earl")
    write_json(path, {"step": 1})
    write_json(path, {"step": 2, "name": "é"})
    assert json.loads(path.read_text()) == {"step": 2, "name": "é"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_fault_leaves_the_former_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note.txt"
    write_whole(path, "former")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new and longer")
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "former"


def test_the_fault_of_a_folder_that_is_missing_is_the_one_that_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        write_whole(tmp_path / "absent" / "note.txt", "text")


def test_lines_after_the_resumed_step_are_dropped_and_torn_ones_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "trai')
    keep_until(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    keep_until(tmp_path / "absent.jsonl", 2)
    assert not (tmp_path / "absent.jsonl").exists()


def test_lines_of_steps_that_are_trained_again_are_kept_beside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for attempt in "ab":
        with path.open("a") as file:
            file.write("".join(json.dumps({"step": step, "attempt": attempt}) + "\n" for step in (1, 2, 3)))
        keep_until(path, 0)
    lost = [json.loads(line) for line in (tmp_path / "metrics_lost.jsonl").read_text().splitlines()]
    assert [(line["attempt"], line["step"]) for line in lost] == [(a, step) for a in "ab" for step in (1, 2, 3)]


def test_a_log_is_cut_though_the_disk_refuses_the_lost_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2)))
    (tmp_path / "metrics_lost.jsonl").mkdir()  # what no user, root neither, can append to
    keep_until(path, 1)
    assert path.read_text() == '{"step": 1}\n'
