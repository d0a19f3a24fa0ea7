"""Fixtures that many tests share: real text made into token datasets once, small models of it, and a pool of ranks."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from ranks import Ranks
from tiny_runs import tiny_overrides

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the ranks of a test share two cores
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: a worker takes a file at a time, and a long one at the end would leave the other idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
def base_model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model's Hugging Face folder: two layers, the second without positions, 1,024 rows of embedding, all used."""
    import torch
    from transformers import AutoTokenizer, SmolLM3Config, SmolLM3ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "base"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "no_rope_layers": [1, 0]}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 0}
    network = SmolLM3ForCausalLM(SmolLM3Config(vocab_size=1024, max_position_embeddings=512, **sizes, **heads, **ids))
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(corpus / "tokenizer").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_folder(base_model: Path) -> Path:
    """The same, ready for chats."""
    from post_training import chat_model

    folder = base_model.parent / "chat"
    chat_model.run(base_model, folder)
    return folder


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    pool = Ranks()
    yield pool
    pool.close()


@pytest.fixture
def overrides(corpus: Path, tmp_path: Path) -> list[str]:
    """Settings that turn configs/quickstart.yaml into a run of seconds on `corpus`, in tmp_path/run."""
    return tiny_overrides(corpus, tmp_path / "run")
