"""The example at the end of every command's --help works as it is written, one after the other, on real text."""

import re
import shlex
from pathlib import Path

import pytest
from document_files import REPOSITORY

from data_tools.__main__ import build_parser, main


def examples() -> dict[str, list[str]]:
    """By command, in the order of the help: the words after `python -m data_tools`."""
    [subparsers] = [action for action in build_parser()._actions if action.dest == "command"]
    found = {}
    for name, parser in subparsers.choices.items():  # type: ignore[union-attr]
        match = re.search(r"example:\s+python -m data_tools (.+)", parser.epilog or "")
        assert match, f"{name} --help has no example"
        found[name] = shlex.split(match[1])
    return found


def test_every_commands_example_works_on_real_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("configs").symlink_to(REPOSITORY / "configs")
    for name, words in examples().items():
        assert words[0] == name
        words = [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
        assert main(words) == 0, shlex.join(words)
        if name == "corpus":  # a file of each is plenty
            for folder in {path.parent for path in Path("runs/corpus").rglob("*.jsonl")}:
                for path in sorted(folder.glob("*.jsonl"))[1:]:
                    path.unlink()
        if name == "tokenize":  # the quickstart's folders, which the example of `inspect` looks at
            for part in ("docs", "held_out/code", "held_out/docs"):
                assert main(["tokenize", f"runs/corpus/{part}", f"runs/tokens/{part}", "--tokenizer", "runs/tokenizer"]) == 0
            Path("runs/quickstart").mkdir()
            for part in ("tokens", "tokenizer"):
                Path("runs/quickstart", part).symlink_to(tmp_path / "runs" / part)
