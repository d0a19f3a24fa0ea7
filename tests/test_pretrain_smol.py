"""The command: bad input gives one sentence with the setting, the values and the remedy, exit code 93, and writes nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import QUICKSTART, REPOSITORY

import pretrain_smol

BAD_CONFIG = {
    "unknown key": (["train.micro_batchsize=2"], ["train.micro_batchsize: unknown key", "'micro_batch_size'"]),
    "unknown section": (["trian.seed=1"], ["trian: unknown key", "'train'"]),
    "stage without data": (["data.stages.0.weights={}"], ["data.stages.0.weights", "name no dataset", "give at least one"]),
    "negative weight": (["data.stages.0.weights.code=-0.1"], ["data.stages.0.weights", "'code': -0.1", "not negative"]),
    "weights all zero": (
        ["data.stages.1.weights={code: 0, docs: 0}"],
        ["data.stages.1.weights", "no dataset with a share above 0"],
    ),
    "weight of an unknown dataset": (["data.stages.0.weights={coed: 1}"], ["'coed' is not in data.datasets", "'code'"]),
    "heads and groups": (["model.num_query_groups=3"], ["num_attention_heads=4", "num_query_groups=3", "choose a divisor"]),
    "heads and TP": (["parallel.tensor=3"], ["model.num_attention_heads=4", "parallel.tensor=3"]),
    "groups and TP": (["parallel.tensor=4"], ["model.num_query_groups=2", "parallel.tensor=4", "lower parallel.tensor"]),
    "batch and micro batch": (["train.micro_batch_size=3"], ["train.global_batch_size=8", "train.micro_batch_size=3"]),
}


@pytest.mark.parametrize("case", BAD_CONFIG)
def test_a_bad_configuration_is_refused(
    case: str, overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, expected = BAD_CONFIG[case]
    assert pretrain_smol.main(["--config", str(QUICKSTART), *overrides, *settings]) == 93
    message = capsys.readouterr().err
    for part in expected:
        assert part in message
    assert not (tmp_path / "run").exists()


def edited(manifest: str, value: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "manifest.json"
        content = json.loads(path.read_text())
        content[manifest] = value
        path.write_text(json.dumps(content))

    return edit


def truncate(folder: Path) -> None:
    shard = next(folder.glob("*.ds"))
    shard.write_bytes(shard.read_bytes()[:-100])


def other_tokenizer(folder: Path) -> None:
    edited("tokenizer", {"name": "another", "sha256": "0" * 64})(folder)


BAD_DATA: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no dataset": (shutil.rmtree, ["manifest.json cannot be read", "data_tools tokenize"]),
    "missing shard": (lambda folder: next(folder.glob("*.ds")).unlink(), [".ds", "missing"]),
    "truncated shard": (truncate, [".ds", "bytes"]),
    "wrong dtype": (edited("dtype", "uint32"), [".ds", "uint32"]),
    "other tokenizer": (other_tokenizer, ["tokenizer", "another"]),
    "larger vocabulary than the model's": (edited("vocab_size", 5000), ["5000", "1024"]),
    "id beyond the vocabulary": (edited("vocab_size", 100), ["vocab_size", "100"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused(
    case: str, overrides: list[str], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, expected = BAD_DATA[case]
    folder = tmp_path / "docs"
    shutil.copytree(corpus / "tokens" / "docs", folder)
    break_it(folder)
    assert pretrain_smol.main(["--config", str(QUICKSTART), *overrides, f"data.datasets.docs={folder}"]) == 93
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1, message
    for part in expected:
        assert part in message
    assert not list((tmp_path / "run").glob("iter_*"))


def test_a_batch_that_the_ranks_cannot_share_is_refused(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["train.global_batch_size=6", "train.micro_batch_size=4"]
    assert pretrain_smol.main(["--config", str(QUICKSTART), *overrides, *settings]) == 93
    assert "train.global_batch_size=6 is not divisible by train.micro_batch_size=4" in capsys.readouterr().err


def test_a_world_that_does_not_divide_into_models_is_refused(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain_smol.main(["--config", str(QUICKSTART), *overrides, "parallel.tensor=2"]) == 93
    assert "1 processes do not divide into copies of parallel.tensor=2" in capsys.readouterr().err


def test_the_te_backend_is_refused_where_it_does_not_import(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    from smol_model.spec import importable

    if importable("transformer_engine.pytorch"):
        pytest.skip("Transformer Engine imports here")
    assert pretrain_smol.main(["--config", str(QUICKSTART), *overrides, "train.backend=te"]) == 93
    assert "train.backend is te, but transformer_engine does not import" in capsys.readouterr().err


def test_a_dry_run_needs_neither_data_nor_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATA_ROOT", "RUN_ROOT"):
        monkeypatch.delenv(name, raising=False)
    config = str(REPOSITORY / "configs" / "smollm3" / "pretrain.yaml")
    assert pretrain_smol.main(["--config", config, "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out)
    assert plan["parameters"] == 3_075_098_624
    assert plan["flops_per_token"] == 22_073_573_376
    assert plan["tokens_per_step"] == 2_359_296
    assert plan["train_steps"] == 4_720_000
    assert plan["train_tokens"] == 4_720_000 * 2_359_296
    assert "DATA_ROOT" in captured.err and "RUN_ROOT" in captured.err


def test_a_config_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        pretrain_smol.main([])
    assert stop.value.code == 2
    assert "--config is needed" in capsys.readouterr().err
