"""Reading and writing the small files that the tests of data_tools need, and what a command line did."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Outcome:
    """Exit code, standard output and standard error of one command."""

    code: int
    out: str
    err: str


Tool = Callable[..., Outcome]
REPOSITORY = Path(__file__).parents[2]


def python(*arguments: object) -> Outcome:
    """Run Python in a process of its own, from the repository's root."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    return Outcome(done.returncode, done.stdout, done.stderr)


def read_documents(folder: Path) -> list[dict[str, str]]:
    """The documents of a folder of JSON Lines."""
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text("utf8").split("\n") if line]


def write_documents(path: Path, texts: list[str], key: str = "text") -> Path:
    """A JSON Lines file with these texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), "utf8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
