"""`merge`: bit for bit the weighted sum in fp32, a folder that transformers loads, and every misfit named."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from small_models import Command
from tiny_runs import REPOSITORY
from torch import Tensor

from conversion.safetensors_files import SafetensorsWriter

WORDS = torch.tensor([[1, 30, 77, 200, 4, 4, 9]])


@pytest.fixture
def models(originals: list[Path], tmp_path: Path) -> list[Path]:
    """Copies to spoil."""
    return [Path(shutil.copytree(folder, tmp_path / "in" / folder.name)) for folder in originals]


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def expected(folders: list[Path], weights: list[float], dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The sum by numpy: each product and each sum rounded to fp32, the result to `dtype`."""
    states = [tensors(folder) for folder in folders]
    sums = {}
    for name in states[0]:
        terms = [np.float32(weight) * state[name].float().numpy() for weight, state in zip(weights, states, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        assert total.dtype == np.float32
        sums[name] = torch.from_numpy(total).to(dtype)
    return sums


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)


def test_a_merge_is_the_weighted_sum_bit_for_bit_and_loads(originals: list[Path], tmp_path: Path, command: Command) -> None:
    a, b, _ = originals
    out = tmp_path / "out"
    out.mkdir()  # an empty folder may stand there
    ran = command("merge", out, "--models", f"{a}=0.9", f"{b}=0.1")
    assert ran.code == 0 and f"wrote {out}" in ran.out, ran.err
    wanted = expected([a, b], [0.9, 0.1])
    assert same(tensors(out), wanted)
    assert not same(wanted, tensors(a))

    merged = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert merged.dtype == torch.bfloat16
    reference = transformers.AutoModelForCausalLM.from_pretrained(a)
    before = reference(WORDS).logits
    reference.load_state_dict(wanted, strict=False)
    assert torch.equal(merged(WORDS).logits, reference(WORDS).logits)
    assert not torch.equal(before, reference(WORDS).logits)
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (a / name).read_bytes()


def test_the_manifest_and_the_card_say_what_went_in(originals: list[Path], tmp_path: Path, command: Command) -> None:
    a, b, _ = originals
    assert command("merge", tmp_path / "out", "--models", f"{a}=1.5", f"{b}=-0.5").code == 0  # beyond a, away from b
    assert same(tensors(tmp_path / "out"), expected([a, b], [1.5, -0.5]))
    manifest = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert (manifest["method"], manifest["dtype"]) == ("linear", "bfloat16")
    assert manifest["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    for folder, weight, entry in zip((a, b), (1.5, -0.5), manifest["models"], strict=True):
        hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
        name = f"{folder.parent.name}/{folder.name}"
        assert entry == {"name": name, "folder": str(folder), "weight": weight, "sha256": hashes}
    assert len(manifest["models"][1]["sha256"]) > 1
    card = (tmp_path / "out" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["tags"] == ["smollm3", "merge"] and f"| {b.parent.name}/b | -0.5 |" in card


def test_smollm3s_recipe_averages_the_soup_first(
    originals: list[Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = originals
    cached = tmp_path / "models--org--expert" / "snapshots" / "0123"  # as the Hub's cache names a revision
    for folder, name in ((a, "smollm3_apo/half_epoch"), (b, "smollm3_apo/one_epoch"), (c, str(cached))):
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "smollm3_long_context_expert").symlink_to(cached)
    monkeypatch.setenv("RUN_ROOT", str(tmp_path))
    ran = command("merge", tmp_path / "out", "--config", REPOSITORY / "configs/smollm3/merge.yaml")
    assert ran.code == 0, ran.err
    assert same(tensors(tmp_path / "out"), expected([a, b, c], [0.45, 0.45, 0.1]))
    names = [entry["name"] for entry in json.loads((tmp_path / "out" / "merge.json").read_text())["models"]]
    assert names == ["smollm3_apo/half_epoch", "smollm3_apo/one_epoch", "org/expert"]


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in (config | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))


def test_harmless_keys_of_the_configuration_may_differ(models: list[Path], tmp_path: Path, command: Command) -> None:
    a, b, _ = models
    change_config(b, transformers_version="4.53.0", use_cache=False, eos_token_id=7, rope_scaling=None)  # null: as if absent
    ran = command("merge", tmp_path / "out", "--models", f"{a}=0.5", f"{b}=0.5")
    assert ran.code == 0, ran.err
    assert f"note: eos_token_id is 1 in {a} and 7 in {b}; 1 is kept" in ran.out
    assert (tmp_path / "out" / "config.json").read_bytes() == (a / "config.json").read_bytes()


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    content = change(load_file(folder / "model.safetensors"))
    save_file(content, folder / "model.safetensors", metadata={"format": "pt"})


def set_norm(folder: Path, value: float, dtype: torch.dtype = torch.bfloat16) -> None:
    """All weights in `dtype`, the last norm's first one `value`."""

    def change(content: dict[str, Tensor]) -> dict[str, Tensor]:
        content["model.norm.weight"][0] = value
        return {name: tensor.to(dtype) for name, tensor in content.items()}

    rewrite(folder, change)


def store_head(folder: Path, change: float) -> None:
    """The embedding plus `change`, as the head of a model that ties them."""
    rewrite(folder, lambda content: content | {"lm_head.weight": content["model.embed_tokens.weight"] + change})


def without_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("*token*"), *folder.glob("*chat*")]:
        path.unlink()


def other_words(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    assert '"A":' in text and '"B":' in text
    (folder / "tokenizer.json").write_text(text.replace('"A":', '"AB":').replace('"B":', '"A":').replace('"AB":', '"B":'))


def test_fp32_stays_fp32_and_a_terminal_shows_a_bar(
    models: list[Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _, c = models
    for folder in (a, c):
        set_norm(folder, 0.7, torch.float32)
    before = {folder: (folder / "model.safetensors").read_bytes() for folder in (a, c)}
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    ran = command("merge", tmp_path / "out", "--models", f"{a}=0.9", f"{c}=0.1")
    assert ran.code == 0 and "merging: 100%" in ran.err and "hashing: 100%" in ran.err
    assert same(tensors(tmp_path / "out"), expected([a, c], [0.9, 0.1], torch.float32))
    assert all((folder / "model.safetensors").read_bytes() == before[folder] for folder in (a, c))


MISFITS: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "a tensor lacks": (
        lambda a, c: rewrite(c, lambda content: {name: content[name] for name in content if name != "model.norm.weight"}),
        "model.norm.weight is [32] in {a} and is not in {c}; merge models of one architecture",
    ),
    "a tensor more": (
        lambda a, c: rewrite(c, lambda content: content | {"lm_head.weight": torch.zeros(2, dtype=torch.bfloat16)}),
        "lm_head.weight is not in {a} and is [2] in {c}",
    ),
    "another shape": (
        lambda a, c: rewrite(c, lambda content: content | {"model.norm.weight": torch.zeros(31, dtype=torch.bfloat16)}),
        "model.norm.weight is [32] in {a} and is [31] in {c}",
    ),
    "another dtype": (
        lambda a, c: set_norm(c, 1, torch.float32),
        "{a} is stored in bfloat16 and {c} in float32; save one of them again",
    ),
    "a tied head of its own": (
        lambda a, c: [store_head(folder, change) for folder, change in ((a, 0), (c, 1))],
        "{c}: lm_head.weight differs from model.embed_tokens.weight, but its configuration ties them",
    ),
    "another configuration": (
        lambda a, c: change_config(c, rms_norm_eps=0.5),
        "config.json: rms_norm_eps is 1e-06 in {a} and 0.5 in {c}; merge models that compute alike",
    ),
    "no language model": (lambda a, c: change_config(a, vocab_size=...), "config.json lacks vocab_size"),
    "no configuration": (lambda a, c: (c / "config.json").unlink(), "config.json cannot be read"),
    "no tokenizer": (lambda a, c: without_tokenizer(c), "{c} holds no tokenizer files; put those"),
    "a broken tokenizer": (
        lambda a, c: (c / "tokenizer.json").write_text("{"),
        "; put the one that its model was trained with",
    ),
    "another vocabulary": (lambda a, c: other_words(c), "the vocabulary of {c} is not that of {a} (token 'A' has id"),
    "too many words": (
        lambda a, c: [change_config(folder, vocab_size=258) for folder in (a, c)],
        "ids and the model's vocab_size is 258; put the one",
    ),
    "NaN": (
        lambda a, c: set_norm(c, float("nan")),
        "model.norm.weight holds NaN or Inf in {c}; leave that model out",
    ),
    "a sum too large": (
        lambda a, c: (set_norm(a, 3e38), set_norm(c, -3e38)),
        "model.norm.weight: the weighted sum is larger than bfloat16 holds",
    ),
    "no folder": (lambda a, c: shutil.rmtree(c), "{c} holds neither model.safetensors nor"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_models_that_do_not_fit_are_named_and_nothing_is_left(
    name: str, models: list[Path], tmp_path: Path, command: Command
) -> None:
    spoil, sentence = MISFITS[name]
    a, _, c = models
    spoil(a, c)
    ran = command("merge", tmp_path / "out", "--models", f"{a}=2", f"{c}=-1")
    assert (ran.code, sentence.format(a=a, c=c) in ran.err) == (2, True), ran.err
    assert "Traceback" not in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("a b=0.1", "--models a: not a folder and its weight; write FOLDER=WEIGHT"),
        ("=0.9 b=0.1", "--models =0.9: not a folder and its weight"),
        ("a=nan b=0.1", "--models: models.0.weight: Input should be a finite number"),
        ("a=0.9 b=0.2", "models: the weights sum to 1.1, not to 1 (within 1e-06)"),
        ("a=0.9 a=0.1", "models: a is given more than once"),
        ("a=1", "models: a is the only folder; a merge needs two or more"),
    ],
)
def test_weights_that_make_no_merge(arguments: str, sentence: str, tmp_path: Path, command: Command) -> None:
    ran = command("merge", tmp_path / "out", "--models", *arguments.split())
    assert (ran.code, sentence in ran.err) == (2, True), ran.err
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_to(models: list[Path], tmp_path: Path, command: Command) -> None:
    a, b, _ = models
    (tmp_path / "in" / "notes").write_text("mine")
    partial = a.rename(tmp_path / "x.partial")
    for out, first, sentence in (
        (tmp_path / "in", partial, "exists and is not an empty folder; choose another OUT_DIR"),
        (tmp_path / "in" / "notes", partial, "exists and is not an empty folder; choose another OUT_DIR"),
        (tmp_path / "in" / "notes" / "out", partial, "was not made ([Errno 20] Not a directory"),
        (tmp_path / "x", partial, "where the merge would be written, is one of the models; choose another OUT_DIR"),
    ):
        ran = command("merge", out, "--models", f"{first}=0.9", f"{b}=0.1")
        assert (ran.code, sentence in ran.err) == (2, True), ran.err
    assert (tmp_path / "in" / "notes").read_text() == "mine" and (partial / "config.json").is_file()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    originals: list[Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _, c = originals

    def full(writer: SafetensorsWriter, name: str, tensor: Tensor) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SafetensorsWriter, "write", full)
    ran = command("merge", tmp_path / "out", "--models", f"{a}=0.9", f"{c}=0.1")
    assert ran.code == 2 and ran.err.count("\n") == 1
    assert "out was not made ([Errno 28] No space left on device); make room or choose another OUT_DIR" in ran.err
    assert not list(tmp_path.iterdir())


def test_recipes_that_are_none(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "merge.yaml"
    for recipe, sentence in (
        ({"models": [{"folders": ["a", "b"], "wieght": 1}]}, "models.0.wieght: unknown key; did you mean 'weight'?"),
        ({"models": [{"folders": [], "weight": 1}]}, "models.0.folders: "),
        ({"models": []}, "models: "),
    ):
        path.write_text(yaml.safe_dump(recipe))
        ran = command("merge", tmp_path / "out", "--config", path)
        assert (ran.code, sentence in ran.err) == (2, True), ran.err
    assert command("merge", tmp_path / "out", "--config", path, "--models", "a=1").code == 2  # one of the two
    ran = command("merge", "--help")
    assert ran.code == 0 and "example:\n  python -m conversion merge " in ran.out


KILLED = """
import os, signal, sys
from conversion import safetensors_files
from conversion.__main__ import main

write = safetensors_files.SafetensorsWriter.write
def write_three(writer, name, tensor, written=[]):
    written.append(name)
    os.kill(os.getpid(), signal.SIGKILL) if len(written) > 3 else write(writer, name, tensor)
safetensors_files.SafetensorsWriter.write = write_three
sys.exit(main(sys.argv[1:]))
"""


def test_a_merge_killed_half_way_leaves_no_out_dir_and_the_next_one_succeeds(
    originals: list[Path], tmp_path: Path, command: Command
) -> None:
    a, _, c = originals
    arguments = ["merge", str(tmp_path / "out"), "--models", f"{a}=0.3", f"{c}=0.7"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    ran = command(*arguments)
    assert ran.code == 0 and "left by a merge that did not finish" in ran.out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert same(tensors(tmp_path / "out"), expected([a, c], [0.3, 0.7]))
