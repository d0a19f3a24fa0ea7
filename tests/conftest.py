"""Fixtures that many tests share: real text made into token datasets once, and a pool of ranks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import Ranks

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the ranks of a test share two cores

REPOSITORY = Path(__file__).parent.parent


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


def tiny_overrides(corpus: Path, output_dir: Path) -> list[str]:
    """configs/quickstart.yaml made tiny: 4 layers, hidden 64, 8 windows of 64 tokens a step, 6 + 4 steps."""
    tokens = corpus / "tokens"
    settings = {
        "data.tokenizer": corpus / "tokenizer",
        "data.datasets.code": tokens / "code",
        "data.datasets.docs": tokens / "docs",
        "data.held_out.code": tokens / "held_out" / "code",
        "data.held_out.docs": tokens / "held_out" / "docs",
        "data.sequence_length": 64,
        "data.stages.0.steps": 6,
        "data.stages.1.steps": 4,
        "train.output_dir": output_dir,
        "train.micro_batch_size": 2,
        "train.global_batch_size": 8,
        "train.precision": "fp32",
        "model.vocab_size": 1024,
        "model.hidden_size": 64,
        "model.ffn_hidden_size": 176,
        "optim.schedule.warmup_steps": 2,
        "optim.schedule.decay_steps": 4,
        "evaluation.windows": 8,
        "evaluation.every_steps": "null",
    }
    return [f"{name}={value}" for name, value in settings.items()]
