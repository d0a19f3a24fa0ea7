"""Real text for the tests of data_tools: the running Python's library, a tokenizer trained on it, token shards."""

from pathlib import Path

import pytest
from document_files import Outcome, Tool

from data_tools.__main__ import main


@pytest.fixture
def tool(capfd: pytest.CaptureFixture[str]) -> Tool:
    """Run `python -m data_tools` with these arguments, in this process."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole corpus of the running Python."""
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    assert main(["corpus", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def tokenizer(corpus: Path) -> Path:
    """A small tokenizer, trained on the held-out text because that is quick."""
    folder = corpus.parent / "tokenizer"
    assert main(["train-tokenizer", str(corpus / "held_out"), str(folder), "--vocab-size", "2000"]) == 0
    return folder


@pytest.fixture(scope="session")
def tokens(corpus: Path, tokenizer: Path) -> Path:
    """The corpus's prose, tokenised into two shards."""
    folder = corpus.parent / "tokens"
    arguments = ["tokenize", str(corpus / "docs"), str(folder), "--tokenizer", str(tokenizer), "--tasks", "2", "--workers", "1"]
    assert main(arguments) == 0
    return folder
