"""`python -m evaluation watch` in a process of its own that has the libraries loaded and has used none of them: a watcher forks
its work, and forked from the tests' own process, whose libraries have threads, that work could hang."""

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest


def start(log: Path, *arguments: object) -> BaseProcess:
    """Begin to watch; what it says goes to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["evaluation.run", "transformers.models.llama.modeling_llama"])
    process = context.Process(target=_run, args=(["watch", *map(str, arguments)], log))
    process.start()
    return process


def watch(log: Path, *arguments: object) -> int:
    """Watch to the end; returns the exit code."""
    process = start(log, *arguments)
    process.join(300)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"it did not end: {log.read_text()}")
    return process.exitcode


def _run(arguments: list[str], log: Path) -> None:
    from evaluation.__main__ import main

    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.exit(main(arguments))
