"""Fixtures of the conversion tests: a small tokenizer, checkpoints with random weights and their exports, made once.

The commands start and end Megatron-Core's process group themselves, so nothing here keeps one.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from exported_runs import add_checkpoint
from exporter_process import Exporters
from hub_writes_double import HubWritesDouble, hub_writes_double
from small_models import LLAMA, QWEN2, QWEN3, SMOLLM3, Command, Run, save_checkpoint

from conversion.__main__ import main
from conversion.upload import flow
from smol_model.config import ModelConfig


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run `python -m conversion` with these arguments, in this process."""

    def run(*arguments: object) -> Run:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        return Run(code, *capfd.readouterr())

    return run


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody who sends waits; how long they wanted to."""
    wanted: list[float] = []
    monkeypatch.setattr(flow, "sleep", wanted.append)
    return wanted


@pytest.fixture
def hub_waits(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nor does huggingface_hub in its own attempts."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return waits


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubWritesDouble]:
    with hub_writes_double(monkeypatch) as server:
        yield server


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder: 256 bytes, three special tokens, a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<bos>", "<eos>", "<pad>"]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate([*specials, *symbols])}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(specials)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    wrapped.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    folder = tmp_path_factory.mktemp("byte_tokenizer")
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm3_checkpoint(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Path) -> Path:
    """SmolLM3, bf16, tied embeddings."""
    return save_checkpoint(tmp_path_factory.mktemp("smollm3") / "iter_0000000", SMOLLM3, torch.bfloat16, byte_tokenizer)


@pytest.fixture(scope="session")
def llama_checkpoint(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Path) -> Path:
    """Llama, fp32, an output layer of its own."""
    return save_checkpoint(tmp_path_factory.mktemp("llama") / "iter_0000000", LLAMA, torch.float32, byte_tokenizer)


@pytest.fixture(scope="session")
def smollm3_export(smollm3_checkpoint: Path) -> Path:
    """The bf16 export of smollm3_checkpoint; tests copy it before they change it."""
    folder = smollm3_checkpoint.parent / "hf"
    assert main(["to-hf", str(smollm3_checkpoint.parent), str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def llama_export(llama_checkpoint: Path) -> Path:
    """The fp32 export of llama_checkpoint, in several files; tests copy it before they change it."""
    folder = llama_checkpoint.parent / "hf"
    options = ["--dtype", "fp32", "--shard-size", "100KB"]
    assert main(["to-hf", str(llama_checkpoint), str(folder), *options]) == 0
    return folder


def bf16_export(root: Path, model: ModelConfig, tokenizer: Path) -> Path:
    """The bf16 export of a model with random weights."""
    checkpoint = save_checkpoint(root / "iter_0000000", model, torch.bfloat16, tokenizer)
    folder = root / "hf"
    assert main(["to-hf", str(checkpoint), str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def qwen3_export(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Path) -> Path:
    """The bf16 export of a Qwen3 with tied embeddings and wide heads."""
    return bf16_export(tmp_path_factory.mktemp("qwen3"), QWEN3, byte_tokenizer)


@pytest.fixture(scope="session")
def qwen2_export(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Path) -> Path:
    """The bf16 export of a Qwen2 with tied embeddings and grouped queries."""
    return bf16_export(tmp_path_factory.mktemp("qwen2"), QWEN2, byte_tokenizer)


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Path) -> list[Path]:
    """Three SmolLM3s of one size in bf16, tied embeddings, random weights; the second in several files."""
    folders = []
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "vocab_size": 260}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = transformers.SmolLM3Config(**sizes, **heads, **ids, initializer_range=0.2)
    for seed, name in enumerate("abc"):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("models") / name
        model = transformers.SmolLM3ForCausalLM(config).to(torch.bfloat16)
        model.save_pretrained(folder, max_shard_size="30KB" if name == "b" else "5GB")
        shutil.copytree(byte_tokenizer, folder, dirs_exist_ok=True)
        folders.append(folder)
    return folders


@pytest.fixture
def checkpoint(smollm3_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of smollm3_checkpoint to spoil."""
    return Path(shutil.copytree(smollm3_checkpoint, tmp_path / "run" / "iter_0000000"))


@pytest.fixture
def export(llama_export: Path, tmp_path: Path) -> Path:
    """A copy of llama_export to spoil."""
    return Path(shutil.copytree(llama_export, tmp_path / "export"))


@pytest.fixture
def run(smollm3_checkpoint: Path, tmp_path: Path) -> Path:
    """A run's folder with checkpoints of steps 5 and 10, of two stages."""
    folder = tmp_path / "run"
    folder.mkdir()
    add_checkpoint(smollm3_checkpoint, folder, 5, "warm up")
    add_checkpoint(smollm3_checkpoint, folder, 10)
    return folder


@pytest.fixture(scope="session")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Exporters:
    """Runs `python -m conversion export` in processes of its own."""
    return Exporters(tmp_path_factory.mktemp("exporter"))
