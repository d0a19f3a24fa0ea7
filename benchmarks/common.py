"""What the benchmarks share: their command lines, and what a table says of the machine and of its numbers."""

import argparse
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from smol_config import UserError
from smol_console import exit_code


def parser_for(module: str, docstring: str | None) -> argparse.ArgumentParser:
    """A parser of `python -m benchmarks.MODULE` whose help is the module's docstring."""
    summary, _, rest = (docstring or "").partition("\n")
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


Parse = Callable[[Sequence[str] | None], argparse.Namespace]
Run = Callable[[argparse.Namespace, Sequence[str]], None]
"""Takes the options and, for the table, the words in which they were given."""


def run_benchmark(parse: Parse, run: Run, arguments: Sequence[str] | None) -> int:
    """A benchmark's command; returns its exit code."""
    options = parse(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code(lambda: run(options, list(words)))


def module_output(*module_and_arguments: object, environment: Mapping[str, str] | None = None) -> str:
    """Run a module as a command in a process of its own; returns its standard output. Raises UserError with what it said where
    it failed. `environment`: None for this process's."""
    command = [sys.executable, "-m", *map(str, module_and_arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{shlex.join(command)} failed:\n{done.stderr}")
    return done.stdout


def write_table(output: Path, text: str) -> None:
    """Print a table and write it."""
    print(text)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf8")
    print(f"wrote {output}", file=sys.stderr)


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def cpu_model() -> str:
    """The processor's name and its number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(names)} cores"


def versions(packages: Iterable[str]) -> str:
    """The installed versions of packages, and Python's."""
    return ", ".join([*(f"{name} {_version(name)}" for name in packages), f"Python {platform.python_version()}"])


def spread(values: Sequence[float], form: str) -> str:
    """The median of `values` with the lowest and the highest, each through the format `form`."""
    low, middle, high = (form.format(value) for value in (min(values), median(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
