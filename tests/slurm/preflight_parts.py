"""What the tests of preflight build on: a node with settings of its own, and programs that say what a test wants."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import QUICKSTART, tiny_overrides

from slurm.preflight.findings import Finding, Node
from slurm.preflight.limits import Limits
from slurm.preflight.node import CHECKS, run_check
from smol_config import load, parse
from smol_train.config import RunConfig


class CheckedNode:
    """One node n1; its PATH holds nothing but what the test puts there."""

    def __init__(self, folder: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.corpus, self.monkeypatch = folder, corpus, monkeypatch
        self.bin = folder / "bin"
        self.bin.mkdir()
        monkeypatch.setenv("PATH", str(self.bin))
        self.node = Node("n1", Limits(), self.config(), folder / "run", ranks=1, gpus=0, scratch=folder / "disk")

    def config(self, *overrides: str) -> RunConfig:
        return load(RunConfig, QUICKSTART, [*tiny_overrides(self.corpus, self.folder / "run"), *overrides])

    def program(self, name: str, body: str) -> None:
        """A script in place of a tool."""
        (self.bin / name).write_text(f"#!/bin/bash\n{body}\n")
        (self.bin / name).chmod(0o755)

    def gpus(self, *rows: str, remapped: str = "0, 0") -> None:
        """A nvidia-smi that tells of these GPUs, "temperature, clock, memory errors, throttling" each."""
        told = "\n".join(f"{number}, NVIDIA H100 80GB HBM3, 570.86.15, {row}" for number, row in enumerate(rows))
        lines = "\n".join(f"00000000:{number}B:00.0, {remapped}" for number in range(len(rows)))
        header = "| NVIDIA-SMI 570.86.15    Driver Version: 570.86.15    CUDA Version: 12.8  |"
        self.program(
            "nvidia-smi",
            f"case $1 in\n--query-gpu=*) echo '{told}' ;;\n--query-remapped*) echo '{lines}' ;;\n*) echo '{header}' ;;\nesac",
        )
        self.change(gpus=len(rows))

    def change(self, **fields: Any) -> None:
        """Another node, of which nothing is known yet."""
        self.node = dataclasses.replace(self.node, **fields)

    def limits(self, **sections: dict[str, Any]) -> None:
        self.change(limits=parse(Limits, sections, source="test"))

    def check(self, name: str) -> Finding:
        return run_check(CHECKS[name], self.node)

    def verdict(self, name: str) -> str:
        return self.check(name).verdict
