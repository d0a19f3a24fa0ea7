"""A small typed configuration, for the tests of smol_config."""

import textwrap
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from smol_config import (
    ConfigError,
    Section,
)


class Stage(Section):
    name: str
    steps: int = 1
    note: str | None = None

    def problems(self) -> list[str]:
        return [f"steps={self.steps} must be above 0"] if self.steps <= 0 else []


class Optim(Section):
    rate: float
    betas: tuple[float, float] = (0.9, 0.95)
    kind: Literal["wsd", "cosine"] = "wsd"


class Run(Section):
    optim: Optim
    stages: list[Stage] = Field(default_factory=list)
    suites: dict[str, Stage] = Field(default_factory=dict)
    weights: dict[str, float] = Field(default_factory=dict)
    extra: Stage | None = None
    title: str = "untitled"

    def problems(self) -> list[str]:
        return ["title='bad' is taken; choose another"] if self.title == "bad" else []


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf8")
    return path


def refused(action: Any, *arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        action(*arguments)
    return str(caught.value)
