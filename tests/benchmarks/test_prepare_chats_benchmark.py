"""The benchmark of preparing chats, on a few of them. Nothing here looks at how fast anything is."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import prepare_chats
from benchmarks.prepare_chats import SIDES, main


@pytest.mark.slow
def test_both_sides_prepare_the_same_tokens(tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    assert main(["--rows", "40", "--repeats", "1", "--output", str(output)]) == 0
    table = output.read_text(encoding="utf8")
    assert all(f"| {name} | " in table for name in SIDES.values())
    assert "    python -m benchmarks.prepare_chats --rows 40" in table and "40 conversations of four turns" in table


def test_nothing_is_written_when_the_sides_do_not_do_the_same_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(prepare_chats, "_make_inputs", lambda *_: None)
    trained = {"ours": 5.0, "trl": 6.0}
    monkeypatch.setattr(prepare_chats, "_measure", lambda side, _: {"tokens": 9.0, "trained": trained[side]})
    assert main(["--output", str(tmp_path / "table.md")]) == 2
    assert "different numbers of (tokens, trained tokens): [(9.0, 5.0), (9.0, 6.0)]" in capsys.readouterr().err
    assert not (tmp_path / "table.md").exists()


def test_a_side_that_fails_is_told_with_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(prepare_chats, "_make_inputs", lambda *_: None)
    assert main(["--ours-alone", "--output", str(tmp_path / "table.md")]) == 2
    assert "benchmarks.prepare_chats_side ours" in capsys.readouterr().err
