"""Progress: plain lines where there is no terminal, a bar where there is one."""

import io
import sys

import pytest

from data_tools.console import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_tell_how_much_of_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", "files", total=2000, every=0.0) as progress:
        progress.advance(1500)
    assert capsys.readouterr().err == "reading: 1,500 of 2,000 files, 0 s\n"


def test_plain_lines_are_rare(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", "files", every=60.0) as progress:
        for _ in range(100):
            progress.advance()
    assert progress.done == 100
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("reading", "files", total=4) as progress:
        progress.advance(4)
    assert "reading: 100%" in terminal.getvalue()
