"""Small Hugging Face folders to push: real weight files with random numbers, no model to load."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from conversion.upload.local_files import LocalFile


def hf_folder(folder: Path, shards: int = 1, megabytes: float = 0.01, seed: int = 0) -> Path:
    """A whole folder with `shards` weight files of about `megabytes` each."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    weight_map = {}
    for shard in range(1, shards + 1):
        name = "model.safetensors" if shards == 1 else f"model-{shard:05d}-of-{shards:05d}.safetensors"
        save_file({f"weight.{shard}": generator.random(int(megabytes * 250_000), dtype=np.float32)}, folder / name)
        weight_map[f"weight.{shard}"] = name
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"model_type": "smollm3", "seed": seed}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat").mkdir()
    (folder / "chat" / "a template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "parity.json").write_text(json.dumps({"passed": True}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones left out."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: content for name, content in named.items() if not name.startswith(".")}


def large(folder: Path) -> dict[str, str]:
    """Names and SHA-256 of a folder's weight files."""
    return {path.name: LocalFile(path.name, path, 0).sha256 for path in sorted(folder.glob("*.safetensors"))}
