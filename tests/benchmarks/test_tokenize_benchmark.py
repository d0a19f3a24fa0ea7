"""The tokenisation benchmark end to end on little text. Nothing here looks at how fast anything is."""

import re
from pathlib import Path

import pytest

from benchmarks import tokenize_text
from benchmarks.tokenize_text import main


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little of the library's prose, and a small tokenizer."""
    from data_tools.__main__ import main as data_tools

    folder = tmp_path_factory.mktemp("text")
    assert data_tools(["corpus", str(folder / "corpus")]) == 0
    arguments = [str(folder / "corpus" / "held_out"), str(folder / "tokenizer"), "--vocab-size", "2000"]
    assert data_tools(["train-tokenizer", *arguments]) == 0
    return folder


def test_the_three_sides_write_the_same_number_of_tokens(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    text = corpus / "corpus" / "held_out" / "docs"
    arguments = ["--text", str(text), "--tokenizer", str(corpus / "tokenizer"), "--repeats", "1", "--workers", "1"]
    assert main([*arguments, "--output", str(output)]) == 0
    table = output.read_text(encoding="utf8")
    for field in ("    python -m benchmarks.tokenize_text --text", "datatrove 0", "megatron-core 0", "1 cores used"):
        assert field in table
    rates = re.findall(r"^\| .* \| ([\d,]+) \| [\d,]+ \| [\d.]+ times \| [\d,]+ \|", table, re.MULTILINE)
    assert len(rates) == 3
    assert all(int(rate.replace(",", "")) > 0 for rate in rates)


def test_sides_that_differ_are_refused(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([100, 100, 99])
    monkeypatch.setattr(tokenize_text, "_measure", lambda *_: tokenize_text.Measurement(next(counts), 1.0, 1.0))
    output = tmp_path / "table.md"
    text = corpus / "corpus" / "held_out" / "docs"
    arguments = ["--text", str(text), "--tokenizer", str(corpus / "tokenizer"), "--repeats", "1", "--output", str(output)]
    assert main(arguments) == 2
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "/nowhere"], "--text /nowhere holds no .jsonl file; give a folder of JSON Lines"),
        (["--workers", "100000"], "--workers 100000: this machine lends"),
    ],
)
def test_bad_arguments_exit_2(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--output", str(tmp_path / "table.md")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "table.md").exists()
