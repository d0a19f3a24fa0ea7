"""`merge` by slerp, TIES and DARE: what mergekit is asked for, what is made of its answer, and its faults.

A stand-in takes mergekit's place on the PATH, except in the tests at the end, which run the real one where it is installed.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from small_models import Command
from torch import Tensor

STAND_IN = """#!/bin/sh
# mergekit-yaml: notes what it is asked, and answers with a folder that was made before.
/bin/cp "$1" {bin}/asked.yaml
echo "$@" > {bin}/arguments
[ {code} = 0 ] || {{ echo "mergekit has no room" >&2; exit {code}; }}
/bin/cp -r {bin}/answer "$2"
"""

StandIn = Callable[..., Path]


@pytest.fixture
def stand_in(originals: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Puts a stand-in on the PATH that answers with the first model's tensors plus `change`; returns its folder."""

    def install(change: float = 0.5, code: int = 0, dtype: torch.dtype = torch.bfloat16, lacking: str | None = None) -> Path:
        folder = tmp_path / "bin"
        (folder / "answer").mkdir(parents=True)
        answer = {name: (t.float() + change).to(dtype) for name, t in tensors(originals[0]).items() if name != lacking}
        save_file(answer, folder / "answer" / "model.safetensors", metadata={"format": "pt"})
        (folder / "answer" / "config.json").write_text("not the one that is kept")
        program = folder / "mergekit-yaml"
        program.write_text(STAND_IN.format(bin=folder, code=code))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return folder

    return install


def recipe(folder: Path, **content: Any) -> Path:
    """A recipe file; paths of folders become text."""
    path = folder / "merge.yaml"
    path.write_text(json.dumps(content, default=str))
    return path


def tuned(folder: Path, weight: float, density: float = 0.5) -> dict[str, Any]:
    return {"folder": folder, "weight": weight, "density": density}


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def reference(folder: Path) -> dict[str, Any]:
    return {"model": {"path": str(folder)}}


def test_mergekit_is_asked_for_the_recipe_in_fp32(
    originals: list[Path], tmp_path: Path, command: Command, stand_in: StandIn
) -> None:
    a, b, c = originals
    folder = stand_in()
    path = recipe(tmp_path, method="ties", base_model=a, models=[tuned(b, 0.6), tuned(c, 0.4, density=1.0)], seed=3)
    ran = command("merge", tmp_path / "out", "--config", path)
    assert ran.code == 0, ran.err
    assert yaml.safe_load((folder / "asked.yaml").read_text()) == {
        "merge_method": "ties",
        "base_model": reference(a),
        "models": [
            {"model": reference(b), "parameters": {"weight": 0.6, "density": 0.5}},
            {"model": reference(c), "parameters": {"weight": 0.4, "density": 1.0}},
        ],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    assert " --random-seed 3 " in (folder / "arguments").read_text()


def test_slerp_begins_at_the_base(originals: list[Path], tmp_path: Path, command: Command, stand_in: StandIn) -> None:
    a, b, _ = originals
    folder = stand_in()
    path = recipe(tmp_path, method="slerp", base_model=b, models=[{"folder": a}], t=0.25)
    assert command("merge", tmp_path / "out", "--config", path).code == 0
    asked = yaml.safe_load((folder / "asked.yaml").read_text())
    assert (asked["base_model"], asked["parameters"]) == (reference(b), {"t": 0.25})
    assert [one["model"] for one in asked["models"]] == [reference(b), reference(a)]


def test_the_folder_is_a_whole_model_with_manifest_and_card(
    originals: list[Path], tmp_path: Path, command: Command, stand_in: StandIn
) -> None:
    a, b, c = originals
    stand_in()
    path = recipe(tmp_path, method="dare_linear", base_model=a, models=[tuned(b, 0.6), tuned(c, -0.4, 0.25)])
    out = tmp_path / "out"
    ran = command("merge", out, "--config", path)
    assert ran.code == 0 and f"wrote {out}" in ran.out, ran.err
    before = tensors(a)
    assert all(torch.equal(tensor, (before[name].float() + 0.5).bfloat16()) for name, tensor in tensors(out).items())
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (out / name).read_bytes() == (a / name).read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in a.iterdir()} | {"merge.json", "README.md"}
    transformers.AutoModelForCausalLM.from_pretrained(out)

    manifest = json.loads((out / "merge.json").read_text())
    assert (manifest["method"], manifest["t"], manifest["seed"], manifest["dtype"]) == ("dare_linear", None, 0, "bfloat16")
    assert manifest["versions"]["mergekit"] is None, "no Python stands beside the stand-in"
    assert [(entry["folder"], entry.get("weight"), entry.get("density")) for entry in manifest["models"]] == [
        (str(a), None, None),
        (str(b), 0.6, 0.5),
        (str(c), -0.4, 0.25),
    ]
    assert all(len(sha256) == 64 for entry in manifest["models"] for sha256 in entry["sha256"].values())
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["smollm3", "merge"]
    assert "mergekit's dare_linear" in card and f"| {c.parent.name}/c | weight -0.4, density 0.25 |" in card


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "it fails": ({"code": 1}, "ended with exit code 1; it says why above"),
    "not a number": ({"change": float("nan")}, "holds NaN or Inf after the merge"),
    "a tensor lacks": ({"lacking": "model.norm.weight"}, "what mergekit wrote: tensors do not fit"),
    "another dtype": ({"dtype": torch.float32}, "mergekit wrote torch.float32 where torch.bfloat16 was asked for"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_mergekit_gets_wrong_leaves_nothing(
    name: str, originals: list[Path], tmp_path: Path, command: Command, stand_in: StandIn
) -> None:
    a, b, _ = originals
    faults, sentence = FAULTS[name]
    stand_in(**faults)
    path = recipe(tmp_path, method="slerp", base_model=a, models=[{"folder": b}], t=0.5)
    ran = command("merge", tmp_path / "out", "--config", path)
    assert (ran.code, sentence in ran.err) == (2, True), ran.err
    assert "code" not in faults or "mergekit has no room" in ran.err
    assert not list(tmp_path.glob("out*"))


def test_without_mergekit_the_remedy_is_told(
    originals: list[Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = originals
    monkeypatch.setenv("PATH", str(tmp_path))
    path = recipe(tmp_path, method="slerp", base_model=a, models=[{"folder": b}], t=0.5)
    ran = command("merge", tmp_path / "out", "--config", path)
    assert ran.code == 2 and ran.err.count("\n") == 1
    assert "there is no mergekit-yaml on the PATH; install it (python3 -m venv mergekit && " in ran.err


def test_models_are_compared_before_mergekit_runs(
    originals: list[Path], tmp_path: Path, command: Command, stand_in: StandIn
) -> None:
    a, b, _ = originals
    other = Path(shutil.copytree(b, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    folder = stand_in()
    path = recipe(tmp_path, method="slerp", base_model=a, models=[{"folder": other}], t=0.5)
    ran = command("merge", tmp_path / "out", "--config", path)
    assert ran.code == 2 and "config.json: rms_norm_eps is 1e-06" in ran.err
    assert not (folder / "asked.yaml").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"method": "tie"}, "method: 'tie' is none; did you mean 'ties'?"),
        (
            {"method": "slerp", "base_model": "a", "models": [{"folder": "b"}]},
            "method: slerp goes from the base to one model, by t",
        ),
        ({"method": "slerp", "base_model": "a", "models": [tuned(Path("b"), 1)], "t": 0.1}, "its folder alone"),
        ({"method": "slerp", "base_model": "a", "models": [{"folder": "b"}, {"folder": "c"}], "t": 0.1}, "one of models"),
        (
            {"method": "slerp", "base_model": "a", "models": [{"folder": "b"}], "t": 1.5},
            "t: Input should be less than or equal to 1",
        ),
        (
            {"method": "ties", "base_model": "a", "models": [{"folder": "b"}]},
            "method: ties takes a weight and a density for each",
        ),
        ({"method": "dare_ties", "base_model": "a", "models": [tuned(Path("b"), 1)], "t": 0.1}, "dare_ties takes a weight and"),
        (
            {"method": "ties", "base_model": "a", "models": [tuned(Path("b"), 1, 0.0)]},
            "density: Input should be greater than 0",
        ),
        ({"method": "ties", "base_model": "a", "models": [tuned(Path("a"), 1)]}, "models: a is given more than once"),
        ({"method": "ties", "models": [tuned(Path("b"), 1)]}, "base_model: missing; add it"),
    ],
)
def test_recipes_that_no_method_has(
    content: dict[str, Any], sentence: str, tmp_path: Path, command: Command, stand_in: StandIn
) -> None:
    stand_in()
    ran = command("merge", tmp_path / "out", "--config", recipe(tmp_path, **content))
    assert (ran.code, sentence in ran.err) == (2, True), ran.err


# --- the real mergekit -----------------------------------------------------------------------------------------------------

real = pytest.mark.skipif(shutil.which("mergekit-yaml") is None, reason="needs mergekit-yaml on the PATH")


def merged(command: Command, folder: Path, **content: Any) -> dict[str, Tensor]:
    folder.mkdir()
    ran = command("merge", folder / "out", "--config", recipe(folder, **content))
    assert ran.code == 0, ran.err
    version = json.loads((folder / "out" / "merge.json").read_text())["versions"]["mergekit"]
    assert version and version[0].isdecimal()
    transformers.AutoModelForCausalLM.from_pretrained(folder / "out")
    return tensors(folder / "out")


@real
def test_slerp_lies_on_the_arc(originals: list[Path], tmp_path: Path, command: Command) -> None:
    a, b = tensors(originals[0]), tensors(originals[1])
    found = merged(
        command, tmp_path / "slerp", method="slerp", base_model=originals[0], models=[{"folder": originals[1]}], t=0.3
    )
    for name, tensor in found.items():
        x, y = a[name].float(), b[name].float()
        cosine = torch.nn.functional.cosine_similarity(x.flatten(), y.flatten(), dim=0)
        angle = torch.arccos(cosine)
        arc = (torch.sin(0.7 * angle) * x + torch.sin(0.3 * angle) * y) / torch.sin(angle)
        expected = 0.7 * x + 0.3 * y if cosine > 0.9995 else arc
        torch.testing.assert_close(tensor.float(), expected, rtol=2**-8, atol=1e-6)  # bf16 keeps 8 bits


@real
def test_ties_takes_the_mean_of_the_majoritys_sign(originals: list[Path], tmp_path: Path, command: Command) -> None:
    """Untrimmed, so that no choice among equal elements matters."""
    a, b, c = (tensors(folder) for folder in originals)
    models = [tuned(originals[1], 0.6, 1.0), tuned(originals[2], 0.4, 1.0)]
    found = merged(command, tmp_path / "ties", method="ties", base_model=originals[0], models=models)
    for name, tensor in found.items():
        deltas = torch.stack([0.6 * (b[name].float() - a[name].float()), 0.4 * (c[name].float() - a[name].float())])
        weights = torch.tensor([0.6, 0.4]).view(2, *[1] * a[name].dim())
        agree = deltas.sign() == torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
        total = (weights * agree).sum(0)
        mean = (deltas * agree).sum(0) / torch.where(total == 0, 1.0, total)
        torch.testing.assert_close(tensor.float(), a[name].float() + mean, rtol=2**-8, atol=1e-6)


@real
@pytest.mark.parametrize("method", ["dare_ties", "dare_linear"])
def test_dare_repeats_its_choice_by_the_seed(method: str, originals: list[Path], tmp_path: Path, command: Command) -> None:
    models = [tuned(originals[1], 0.6), tuned(originals[2], 0.4)]
    first, second, other = (
        merged(command, tmp_path / name, method=method, base_model=originals[0], models=models, seed=seed)
        for name, seed in (("first", 1), ("second", 1), ("other", 2))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
