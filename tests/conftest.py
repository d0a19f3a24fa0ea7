"""Fixtures that many tests share: real text made into token datasets once, and a pool of ranks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import Ranks
from tiny_runs import tiny_overrides

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the ranks of a test share two cores


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What quickstart.sh prepares: text/, tokenizer/, tokens/{code,docs,held_out/code,held_out/docs}."""
    from data_tools.__main__ import main

    root = tmp_path_factory.mktemp("corpus")
    text, tokenizer = root / "text", root / "tokenizer"
    assert main(["corpus", str(text)]) == 0
    assert main(["train-tokenizer", str(text / "docs"), str(tokenizer), "--vocab-size", "1024"]) == 0
    for name in ("code", "docs", "held_out/code", "held_out/docs"):
        source = sorted((text / name).glob("*.jsonl"))[0]  # one file of each is plenty for tests
        assert main(["tokenize", str(source), str(root / "tokens" / name), "--tokenizer", str(tokenizer)]) == 0
    return root


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    pool = Ranks(4)
    yield pool
    pool.close()


@pytest.fixture
def overrides(corpus: Path, tmp_path: Path) -> list[str]:
    """Settings that turn configs/quickstart.yaml into a run of seconds on `corpus`, in tmp_path/run."""
    return tiny_overrides(corpus, tmp_path / "run")
