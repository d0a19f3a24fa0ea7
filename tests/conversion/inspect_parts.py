"""What the tests of inspect share: its answer as JSON, and checkpoints and folders changed on purpose."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_models import Command

from smol_train.checkpoint_folder import STATE


def as_json(command: Command, *arguments: object) -> dict[str, Any]:
    ran = command("inspect", *arguments, "--json", "-")
    assert ran.code == 0, ran.err
    contents: dict[str, Any] = json.loads(ran.out)  # nothing else is on stdout
    return contents


def last(text: str) -> str:
    return text.strip().splitlines()[-1]


def change(checkpoint: Path, **state: Any) -> None:
    """Rewrite fields of state.json, which the marker does not list."""
    path = checkpoint / STATE
    path.write_text(json.dumps(json.loads(path.read_text()) | state))


def spoil(folder: Path, name: str, values: dict[int, float]) -> None:
    """Put values at positions of a tensor, flattened, of a folder with one weight file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for position, value in values.items():
        tensors[name].view(-1)[position] = value
    save_file(tensors, path, {"format": "pt"})


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
