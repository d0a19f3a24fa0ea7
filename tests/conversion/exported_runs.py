"""Runs' folders for the tests of export, what is in their hf/, and hooks into an exporter's work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from conversion.export_records import RECORDS_NAME
from conversion.safetensors_files import SafetensorsWriter
from smol_train.checkpoint_folder import STATE


def add_checkpoint(source: Path, run: Path, step: int, stage: str = "stable") -> Path:
    """A copy of a checkpoint as that of another step and stage; its name comes last, as a trainer's does."""
    partial = Path(shutil.copytree(source, run / f"iter_{step:07d}.partial"))
    state = json.loads((partial / STATE).read_text())
    segment = {"stage": stage, "weights": {}, "first_step": 0, "steps": step, "first_sample": 0, "batch_size": 1}
    (partial / STATE).write_text(json.dumps(state | {"step": step, "data": {"history": [segment]}}))
    return partial.rename(run / f"iter_{step:07d}")


def tell(run: Path, event: str) -> None:
    with (run / "alerts.jsonl").open("a") as file:
        file.write(json.dumps({"time": "", "event": event, "text": ""}) + "\n")


def events(run: Path) -> list[tuple[str, int]]:
    lines = (run / "hf" / RECORDS_NAME).read_text().splitlines()
    return [(line["event"], line["step"]) for line in map(json.loads, lines)]


def exports(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "hf").glob("step_*"))


def at_first_tensor(happens: Callable[..., None], *arguments: Any) -> None:
    """Have something happen in the exporting process when it has written an export's first tensor."""
    write, seen = SafetensorsWriter.write, set[Path]()

    def then(writer: SafetensorsWriter, name: str, tensor: torch.Tensor) -> None:
        write(writer, name, tensor)
        if writer._folder not in seen:
            seen.add(writer._folder)
            happens(*arguments)

    SafetensorsWriter.write = then  # type: ignore[method-assign]


def once(mark: Path, happens: Callable[..., None], *arguments: Any) -> None:
    if not mark.exists():
        mark.touch()
        happens(*arguments)
