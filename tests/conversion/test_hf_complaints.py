"""Bad input of to-hf and verify: one sentence that names what, exit code 2, nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from small_models import Command


def change_run(checkpoint: Path, section: str, **changes: Any) -> None:
    mapping = yaml.safe_load((checkpoint / "run.yaml").read_text())
    mapping[section] = {name: value for name, value in (mapping[section] | changes).items() if value is not None}
    (checkpoint / "run.yaml").write_text(yaml.safe_dump(mapping))
    unlist(checkpoint)


def unlist(checkpoint: Path) -> None:
    """Leave the marker of checkpoints from before files were listed: damage is met where it is read."""
    (checkpoint / "COMPLETE").write_text("0\n")


def without_metadata(checkpoint: Path) -> None:
    (checkpoint / ".metadata").unlink()


def damage(checkpoint: Path) -> None:
    for path in checkpoint.glob("*.distcp"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILED: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "unfinished": (lambda c: (c / "COMPLETE").unlink(), [], "has no COMPLETE marker"),
    "qk_norm": (lambda c: change_run(c, "model", qk_norm=True), [], "model.no_rope=4 with model.qk_norm=true: no"),
    "no Llama": (
        lambda c: change_run(c, "model", hidden_size=50, head_dim=8, no_rope=None),
        [],
        "model.hidden_size=50 is not a multiple",
    ),
    "another depth": (lambda c: change_run(c, "model", num_layers=5), [], "missing: decoder.layers.4."),
    "another width": (
        lambda c: change_run(c, "model", ffn_hidden_size=100),
        [],
        "linear_fc1.weight [192, 64] instead of [200, 64]",
    ),
    "no length": (lambda c: change_run(c, "data", sequence_length=None), [], "data.sequence_length is None"),
    "no tokenizer": (lambda c: change_run(c, "data", tokenizer=None), [], "names no data.tokenizer"),
    "no metadata": (without_metadata, [], "is damaged (.metadata cannot be read: No such file"),
    "damaged": (damage, [], ".distcp has"),
    "no metadata, unlisted": (lambda c: (without_metadata(c), unlist(c)), [], "has no readable .metadata"),
    "damaged, unlisted": (lambda c: (damage(c), unlist(c)), [], "cannot be read (EOFError)"),
    "shard size": (lambda c: None, ["--shard-size", "big"], "argument --shard-size: 'big' is not a size"),
    "text": (lambda c: None, ["--text", "nowhere.txt"], "--text nowhere.txt is not a file"),
    "yarn": (lambda c: None, ["--yarn", "0.5"], "--yarn 0.5 must be 1 (off) or above"),
    "yarn twice": (
        lambda c: change_run(c, "model", llama3_rope_factor=8.0),
        ["--yarn", "2"],
        "--yarn 2.0 with model.llama3_rope_factor=8.0",
    ),
    "dtype": (lambda c: None, ["--dtype", "fp8"], "invalid choice: 'fp8'"),
    "unknown tokenizer": (lambda c: None, ["--tokenizer", "no/such"], "tokenizer 'no/such' is neither a folder nor"),
    "empty tokenizer": (lambda c: (c / "t").mkdir(), ["--tokenizer", "{checkpoint}/t"], "holds no tokenizer files"),
    "broken tokenizer": (lambda c: broken_tokenizer(c / "t"), ["--tokenizer", "{checkpoint}/t"], "does not load"),
}


def broken_tokenizer(folder: Path) -> None:
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize("name", SPOILED)
def test_bad_input_of_to_hf_is_one_sentence_and_writes_nothing(
    name: str, checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    spoil, options, sentence = SPOILED[name]
    spoil(checkpoint)
    ran = command("to-hf", checkpoint, tmp_path / "hf", *(option.format(checkpoint=checkpoint) for option in options))
    assert (ran.code, sentence in ran.err) == (2, True), ran.err
    assert "Traceback" not in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(
    checkpoint: Path, byte_tokenizer: Path, tmp_path: Path, command: Command
) -> None:
    larger = transformers.AutoTokenizer.from_pretrained(byte_tokenizer)
    larger.add_tokens(["<one>", "<two>"])
    larger.save_pretrained(tmp_path / "larger")
    ran = command("to-hf", checkpoint, tmp_path / "hf", "--tokenizer", tmp_path / "larger")
    assert ran.code == 2 and "has 261 ids and the model's vocab_size is 260" in ran.err


def test_a_tokenizer_of_the_run_that_outgrew_the_embedding_is_refused(
    checkpoint: Path, byte_tokenizer: Path, tmp_path: Path, command: Command
) -> None:
    """As after tokens were added to it, without a row for each in the model."""
    larger = transformers.AutoTokenizer.from_pretrained(byte_tokenizer)
    larger.add_tokens(["<one>", "<two>", "<three>"])
    larger.save_pretrained(checkpoint.parent / "tokenizer")
    change_run(checkpoint, "data", tokenizer=str(checkpoint.parent / "tokenizer"))
    ran = command("to-hf", checkpoint, tmp_path / "hf")
    assert ran.code == 2 and "has 262 ids and the model's vocab_size is 260; give the one that the model" in ran.err
    assert not (tmp_path / "hf").exists()


def test_folders_and_files_in_the_way_are_kept(smollm3_checkpoint: Path, tmp_path: Path, command: Command) -> None:
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("mine")
    for options, sentence in (([], "exists; choose another folder"), (["--overwrite"], "is not an export")):
        for target in (empty, file):
            ran = command("to-hf", smollm3_checkpoint, target, *options)
            assert ran.code == 2 and f"{target} {sentence}" in ran.err
    assert (list(empty.iterdir()), file.read_text()) == ([], "mine")


def test_targets_that_exist_are_kept(smollm3_checkpoint: Path, smollm3_export: Path, tmp_path: Path, command: Command) -> None:
    ran = command("to-hf", smollm3_checkpoint, smollm3_export)
    assert ran.code == 2 and f"{smollm3_export} exists" in ran.err
    (tmp_path / "notes").write_text("mine")
    ran = command("to-hf", smollm3_checkpoint, tmp_path, "--overwrite")
    assert ran.code == 2 and "is not an export" in ran.err
    assert (tmp_path / "notes").read_text() == "mine"


def without_words(export: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE({}, [])).save(str(export / "tokenizer.json"))  # knows no character, so drops each


def broken_model(export: Path) -> None:
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


UNFIT: dict[str, tuple[Callable[[Path], Any], bytes | None, str]] = {
    "not a model": (lambda e: (e / "config.json").unlink(), None, "it has no config.json"),
    "no tokenizer": (
        lambda e: [path.unlink() for path in e.glob("*t*") if "token" in path.name or "chat" in path.name],
        None,
        "holds no tokenizer files",
    ),
    "a tokenizer of nothing": (without_words, None, "ids of the fixed text"),
    "text that is no text": (lambda e: None, b"\xff\xfe\xff", "cannot be read as UTF-8"),
    "text that is too short": (lambda e: None, b"a", "has fewer than two tokens"),
    "a file cut short": (lambda e: cut(next(e.glob("*.safetensors"))), None, ".safetensors cannot be read"),
    "no index": (lambda e: (e / "model.safetensors.index.json").write_text("[]"), None, "is not an index of weight files"),
    "a missing file": (lambda e: next(e.glob("*.safetensors")).unlink(), None, "lacks model-0"),
    "a model that does not load": (broken_model, None, "does not load"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_bad_input_of_verify_is_one_sentence(
    name: str, llama_checkpoint: Path, export: Path, tmp_path: Path, command: Command
) -> None:
    spoil, text, sentence = UNFIT[name]
    spoil(export)
    before = (export / "parity.json").read_bytes()
    options = []
    if text is not None:
        (tmp_path / "text").write_bytes(text)
        options = ["--text", tmp_path / "text"]
    ran = command("verify", llama_checkpoint, export, *options)
    assert (ran.code, sentence in ran.err) == (2, True), ran.err
    assert (export / "parity.json").read_bytes() == before


def test_verify_names_tensors_of_another_model(llama_checkpoint: Path, smollm3_export: Path, command: Command) -> None:
    ran = command("verify", llama_checkpoint, smollm3_export)
    assert ran.code == 2 and "missing: lm_head.weight; unexpected: model.layers.2." in ran.err


def test_no_checkpoint(tmp_path: Path, smollm3_export: Path, command: Command) -> None:
    for arguments in (("to-hf", tmp_path, tmp_path / "hf"), ("verify", tmp_path, smollm3_export)):
        ran = command(*arguments)
        assert ran.code == 2 and f"no whole checkpoint in {tmp_path}" in ran.err


@pytest.mark.parametrize("name", ["to-hf", "from-hf", "verify"])
def test_help_has_an_example(name: str, command: Command) -> None:
    ran = command(name, "--help")
    assert ran.code == 0 and f"example:\n  python -m conversion {name} " in ran.out
