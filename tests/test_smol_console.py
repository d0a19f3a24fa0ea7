"""Progress: plain lines where there is no terminal, a bar where there is one. Ends: a code, and one sentence for the user."""

import argparse
import io
import sys

import pytest

from smol_config import UserError
from smol_console import Progress, byte_size, exit_code


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_tell_how_much_of_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", "files", total=2000, every=0.0) as progress:
        progress.advance(1500)
    assert capsys.readouterr().err == "reading: 1,500 of 2,000 files, 0 s\n"


def test_plain_lines_tell_the_rate_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    for total, left in ((2000, ", 3 s left"), (None, "")):
        with Progress("reading", "files", total=total, every=0.0) as progress:
            progress._started -= 10
            progress.advance(1500)
        assert capsys.readouterr().err.endswith(f" files, 10 s, 150 files/s{left}\n")


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2_000_000_000), ("1.5 mb", 1_500_000), ("64K", 64_000), ("3TB", 3 * 10**12), ("17", 17)]
)
def test_sizes_are_given_with_units(text: str, size: int) -> None:
    assert byte_size(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1GB", "0", "1 GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size; write it like 500MB or 2GB"):
        byte_size(text)


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


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_a_command_ends_with_its_own_code(returned: int | None, code: int) -> None:
    assert exit_code(lambda: returned) == code


def _mistaken() -> None:
    raise UserError("batch.size=0: give 1 or more")


def test_a_users_mistake_is_one_sentence_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (exit_code(_mistaken), exit_code(_mistaken, refused=93)) == (2, 93)
    assert capsys.readouterr().err == 2 * "error: batch.size=0: give 1 or more\n"
    monkeypatch.setenv("RANK", "3")
    exit_code(_mistaken)
    assert capsys.readouterr().err == "error on rank 3: batch.size=0: give 1 or more\n"


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)
