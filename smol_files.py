"""Small files that runs and commands leave: whole or not at all, and logs of steps that a resume cuts.

The packages import this file; it imports none of them.
"""

import contextlib
import json
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file so that it is there whole or not at all, whatever happens meanwhile.

    What a killed process left beside it goes with the next call: the name is the same for all, of whom one writes at a time.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())
        partial.rename(path)
    except OSError:
        with contextlib.suppress(OSError):  # a place that cannot be written has nothing to remove either
            partial.unlink()
        raise


def write_json(path: Path, content: Any) -> None:
    """`write_whole` of `content`, indented."""
    write_whole(path, json.dumps(content, indent=1) + "\n")


def keep_until(path: Path, step: int) -> None:
    """Cut a log of steps, such as metrics.jsonl, after `step`, and drop a line that a crash left half written.

    What is cut goes to NAME_lost.jsonl beside it: what faults cost is counted there (slurm/incidents.py). A disk that refuses
    that file does not end the run.
    """
    if not path.exists():
        return
    kept: list[str] = []
    lost: list[str] = []
    for line in path.read_text(encoding="utf8").splitlines():
        try:
            (kept if json.loads(line)["step"] <= step else lost).append(line + "\n")
        except json.JSONDecodeError:
            continue
    if lost:
        with contextlib.suppress(OSError), path.with_name(f"{path.stem}_lost.jsonl").open("a", encoding="utf8") as file:
            file.writelines(lost)
    write_whole(path, "".join(kept))
