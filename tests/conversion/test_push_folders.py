"""`push` sends whole Hugging Face folders and no others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hf_folders import hf_folder
from small_models import Command

SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), "{f} has no config.json; give a Hugging Face folder"),
    "no weights": (
        lambda f: [path.unlink() for path in f.glob("model*")],
        "{f} holds no weights (*.safetensors); give a whole Hugging Face folder",
    ),
    "a weight file lacks": (
        lambda f: (f / "model-00001-of-00002.safetensors").unlink(),
        "{f} lacks model-00001-of-00002.safetensors, named by model.safetensors.index.json; make the folder again",
    ),
    "a weight file cut off": (
        lambda f: (f / "model-00002-of-00002.safetensors").write_bytes(
            (f / "model-00002-of-00002.safetensors").read_bytes()[:-4]
        ),
        "{f}/model-00002-of-00002.safetensors is damaged (",
    ),
    "a broken index": (
        lambda f: (f / "model.safetensors.index.json").write_text("[]"),
        "{f}/model.safetensors.index.json cannot be read (",
    ),
    "a file that was not finished": (
        lambda f: (f / "chat" / "x.safetensors.partial").touch(),
        "{f}/chat/x.safetensors.partial was not finished; make the folder again or remove the file",
    ),
    "not equal": (
        lambda f: (f / "parity.json").write_text(json.dumps({"passed": False})),
        "{f}/parity.json says that the weights are not those of the checkpoint; export again, nothing was pushed",
    ),
    "nobody knows": (lambda f: (f / "parity.json").write_text("{}"), "{f}/parity.json cannot be read (KeyError('passed')"),
    "a link to nowhere": (
        lambda f: (f / "generation_config.json").symlink_to(f / "nothing"),
        "{f}/generation_config.json cannot be read (No such file or directory); mend or remove it",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_folders_that_are_not_whole_are_named_and_not_pushed(name: str, tmp_path: Path, command: Command) -> None:
    folder = hf_folder(tmp_path / "hf", shards=2)
    spoil, sentence = SPOILT[name]
    spoil(folder)
    for options in ([], ["--dry-run"]):
        ran = command("push", folder, f"file://{tmp_path}/kept", *options)
        assert (ran.code, sentence.format(f=folder) in ran.err) == (2, True), ran.err
    assert not (tmp_path / "kept").exists()


def test_an_unfinished_export_is_not_pushed(tmp_path: Path, command: Command) -> None:
    folder = hf_folder(tmp_path / "hf.partial")
    ran = command("push", folder, f"file://{tmp_path}/kept")
    assert ran.code == 2 and f"{folder} is an export that was not finished; export it again, then push" in ran.err


def test_no_folder_and_an_empty_one(tmp_path: Path, command: Command) -> None:
    ran = command("push", tmp_path / "hf", "memory://x/y")
    assert ran.code == 2 and f"{tmp_path / 'hf'} is not a folder; give one that is there" in ran.err
    (tmp_path / "hf" / ".cache").mkdir(parents=True)
    ran = command("push", tmp_path / "hf", "memory://x/y")
    assert ran.code == 2 and f"{tmp_path / 'hf'} holds no files to upload; give another folder" in ran.err


def test_a_folder_without_a_comparison_is_taken_as_it_is(tmp_path: Path, command: Command) -> None:
    """A merge has no parity.json, and links are what the Hub's cache is made of."""
    folder = hf_folder(tmp_path / "hf")
    (folder / "parity.json").unlink()
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    ran = command("push", folder, f"file://{tmp_path}/kept")
    assert ran.code == 0 and (tmp_path / "kept" / "model.safetensors").read_bytes() == (tmp_path / "blob").read_bytes()
