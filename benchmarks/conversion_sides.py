"""What benchmarks.conversion runs beside `python -m conversion`, each in a process of its own.

make YAML HF_DIR               a Hugging Face folder of random bf16 weights, and a byte tokenizer
copy SOURCE OUT                the files of a folder, copied
save-pretrained HF_DIR OUT     transformers: from_pretrained, save_pretrained
"""

import json
import math
import os
import shutil
import sys
from pathlib import Path


def make(yaml: Path, folder: Path) -> None:
    """Every matrix is a stretch of the same million random numbers, each from another place on."""
    import torch

    from conversion.families import SpecialIds, to_huggingface
    from conversion.safetensors_files import SafetensorsWriter
    from conversion.weights import huggingface_shapes
    from smol_config import load_mapping, parse
    from smol_model.config import ModelConfig

    model = parse(ModelConfig, load_mapping(yaml)["model"], source=str(yaml))
    folder.mkdir(parents=True)
    config = to_huggingface(model, SpecialIds(0, 1, 2), 4096, "bfloat16")
    (folder / "config.json").write_text(json.dumps(config))
    _byte_tokenizer().save_pretrained(folder)
    shapes = huggingface_shapes(model)
    noise = (0.02 * torch.randn(2**20, generator=torch.Generator().manual_seed(0))).bfloat16()
    with SafetensorsWriter(folder, shapes, torch.bfloat16, 5 * 10**9) as writer:
        for number, (name, shape) in enumerate(shapes.items()):
            count = math.prod(shape)
            row = noise.roll(7919 * number).repeat(-(-count // len(noise)))[:count].view(shape)
            writer.write(name, row if len(shape) > 1 else torch.ones(shape))


def _byte_tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = ["<bos>", "<eos>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def copy(source: Path, out: Path) -> None:
    """The files of a folder, on the disk at the end."""
    out.mkdir()
    print("copying", flush=True)
    for path in source.iterdir():
        shutil.copyfile(path, out / path.name)
    _to_disk(out)
    print("copied", flush=True)


def save_pretrained(hf_dir: Path, out: Path) -> None:
    """Transformers' own way, on the disk at the end."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.bfloat16, local_files_only=True)
    print("loaded", flush=True)
    model.save_pretrained(out, max_shard_size="5GB")
    _to_disk(out)
    print("saved", flush=True)


def _to_disk(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


if __name__ == "__main__":
    side, first, second = sys.argv[1:]
    {"make": make, "copy": copy, "save-pretrained": save_pretrained}[side](Path(first), Path(second))
