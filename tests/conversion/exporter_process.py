"""Exporters for the tests of export: each in a process that has loaded the libraries and used none of them.

An exporter forks its work. Forked from the tests' own process, which made checkpoints and so had a gloo world, that work
would crash where it makes another; started as `python -m conversion`, each would load transformers first.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from small_models import Run

LOADED = [
    "conversion.push",
    "conversion.to_hf",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.smollm3.modeling_smollm3",
]

Setup = Callable[[], None]
"""What a test changes in the exporter's process; pickle takes it."""


class Exporter:
    """One that was started."""

    def __init__(self, process: BaseProcess, out: Path, err: Path) -> None:
        self.process, self._out, self._err = process, out, err

    def wait(self) -> Run:
        """What it did, when it has ended; its code is below 0 when a signal ended it."""
        self.process.join(300)
        if self.process.exitcode is None:
            self.process.kill()
            pytest.fail(f"it did not end: {self._out.read_text()}{self._err.read_text()}")
        return Run(self.process.exitcode, self._out.read_text(), self._err.read_text())


class Exporters:
    """Runs `python -m conversion export`: calling it waits for the end."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(LOADED)
        self._started = 0

    def __call__(self, *arguments: object, setup: Setup | None = None, gives_way: bool = False) -> Run:
        return self.start(*arguments, setup=setup, gives_way=gives_way).wait()

    def start(self, *arguments: object, setup: Setup | None = None, gives_way: bool = False) -> Exporter:
        """`gives_way`: its work steps back for others, as it does in earnest. Beside other tests it would stand still."""
        self._started += 1
        out, err = (self._scratch / f"{self._started}.{name}" for name in ("out", "err"))
        process = self._context.Process(target=_run, args=(["export", *map(str, arguments)], setup, gives_way, out, err))
        process.start()
        return Exporter(process, out, err)


def _run(arguments: list[str], setup: Setup | None, gives_way: bool, out: Path, err: Path) -> None:
    from conversion.__main__ import main

    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    if not gives_way:
        os.nice = lambda increment: 0
    if setup:
        setup()
    sys.exit(main(arguments))
