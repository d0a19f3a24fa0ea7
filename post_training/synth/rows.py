"""The rows of a run on disk: a line each, durable before the next prompt is begun. What is there is not made again.

OUT/rows.jsonl        {"id", the row's columns, "usage": {"model": [input tokens, output tokens], ...}}
OUT/left_out.jsonl    {"id", "kind", "why", "usage"}
OUT/run.yaml          the configuration
"""

import fcntl
import json
import os
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from post_training.synth.client import LeftOut, Usage
from post_training.synth.config import SynthConfig
from smol_config import UserError, load, to_yaml

ROWS, LEFT_OUT, CONFIG = "rows.jsonl", "left_out.jsonl", "run.yaml"
_FREE = {"output_dir", "concurrent", "attempts", "timeout_seconds"}
_FREE_OF_MODELS = {"url", "key", "price"}
"""What may change between two commands that make the same rows."""


class Rows:
    """The open files of a run, and what they hold. Raises UserError for a folder of another run, or of one that is running."""

    def __init__(self, config: SynthConfig) -> None:
        self.folder = Path(config.output_dir)
        self.done: set[str] = set()
        self.kept = 0
        self.left_out: Counter[str] = Counter()
        self.usage = {place: Usage() for place in ("model", "weak")}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: self._open(name) for name in (ROWS, LEFT_OUT)}
        _check_same(self.folder / CONFIG, config)
        (self.folder / CONFIG).write_text(to_yaml(config), encoding="utf8")
        for name, file in self._files.items():
            self._read(name, file)

    def keep(self, identity: str, row: dict[str, Any], usages: dict[str, Usage]) -> None:
        self._write(ROWS, {"id": identity} | row, usages)

    def leave_out(self, identity: str, reason: LeftOut, usages: dict[str, Usage]) -> None:
        self._write(LEFT_OUT, {"id": identity, "kind": reason.kind, "why": str(reason)}, usages)

    def _open(self, name: str) -> IO[bytes]:
        file = (self.folder / name).open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{self.folder} is being written to by another synth; let it end, or name another folder"
            ) from error
        return file

    def _read(self, name: str, file: IO[bytes]) -> None:
        """What the file holds; a last line that a kill left half written is cut off."""
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)
        for number, line in enumerate(content[:whole].splitlines()):
            try:
                self._count(name, json.loads(line))
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(
                    f"{self.folder / name}: line {number + 1} is no row ({error}); take it out, and it is made again"
                ) from error

    def _count(self, name: str, line: dict[str, Any]) -> None:
        self.done.add(line["id"])
        for place, (given, made) in line["usage"].items():
            self.usage[place].add(Usage(given, made))
        if name == ROWS:
            self.kept += 1
        else:
            self.left_out[line["kind"]] += 1

    def _write(self, name: str, line: dict[str, Any], usages: dict[str, Usage]) -> None:
        line |= {"usage": {place: [usage.input, usage.output] for place, usage in usages.items()}}
        file = self._files[name]
        try:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.folder / name} cannot be written ({error.strerror}); make room and give the command again"
            ) from error
        self._count(name, line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()


def _check_same(path: Path, config: SynthConfig) -> None:
    """Refuse to add rows to those of another configuration."""
    if not path.is_file():
        return
    before, now = (_compared(one) for one in (load(SynthConfig, path), config))
    if differing := sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name)):
        raise UserError(
            f"{path.parent} was made with other settings ({', '.join(differing)}); put them back, or name another output_dir"
        )


def _compared(config: SynthConfig) -> dict[str, Any]:
    return config.model_dump(
        mode="json",
        exclude={
            **dict.fromkeys(_FREE, True),
            "model": _FREE_OF_MODELS,
            "weak": _FREE_OF_MODELS,
            "prompts": {"path", "share", "max_broken"},
        },
    )
