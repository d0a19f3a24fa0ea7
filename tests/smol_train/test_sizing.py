"""Sizes against the Smol Training Playbook's own, counts by hand, and the KV cache that transformers allocates."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import smol_config
from smol_config import ConfigError
from smol_train.config import RunConfig
from smol_train.plan import main, plan
from smol_train.plan_devices import devices, next_devices
from smol_train.sizing import budget, serving

ROOT = Path(__file__).resolve().parents[2]
SMOLLM3 = str(ROOT / "configs/smollm3/pretrain.yaml")
TINY = str(ROOT / "configs/quickstart.yaml")


def config(path: str, *overrides: str) -> RunConfig:
    return smol_config.load(RunConfig, path, overrides, keep_unset=True)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_the_playbooks_379_gpus_follow_without_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--parameters", "3e9", "--tokens", "11e12", "--days", "28", "--mfu", "0.3", "--peak-tflops", "720"]
    work = answer(capsys, *arguments)["work"]
    assert work["by_6nd"]["gpus"] == 379
    assert work["by_6nd"]["flops"] == pytest.approx(1.98e23)
    assert work["with_attention"] is None, "its layers are not known"
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "379" in text and "GPUs follow" in text and "attention" not in text


def test_attention_is_counted_beside_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["model.num_layers=2", "model.hidden_size=64", "model.ffn_hidden_size=128", "model.num_attention_heads=4"]
    overrides += ["model.num_query_groups=2", "model.vocab_size=4096", "data.sequence_length=512"]
    work = answer(capsys, "--config", TINY, "--tokens", "1e9", "--gpus", "1", *overrides)["work"]
    matrices = 4096 * 64 + 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)
    norms = 2 * 2 * 64 + 64
    assert work["by_6nd"]["flops_per_token"] == 6 * (matrices + norms)
    one_layer = 2 * (2 * 64 * 512)  # q.k and p.v, 4 heads of 16, 512 keys, a product and a sum each
    assert work["with_attention"]["flops_per_token"] == 6 * matrices + 2 * 3 * one_layer  # backward costs two forwards
    assert work["with_attention"]["days"] > work["by_6nd"]["days"]


def test_two_of_tokens_gpus_and_days_give_the_third() -> None:
    gpus = budget(2e9, 1e12, tokens=1e12, days=3)
    assert gpus.gpus == math.ceil(1e12 * 2e9 / (3 * 86_400 * 1e12))
    assert gpus.gpu_hours == gpus.gpus * 72 and gpus.cost is None
    tokens = budget(2e9, 1e12, gpus=8, days=3, price=2.5)
    assert tokens.tokens == pytest.approx(8 * 3 * 86_400 * 1e12 / 2e9)
    assert tokens.cost == 2.5 * 8 * 72
    assert budget(2e9, 1e12, gpus=8, tokens=tokens.tokens).days == pytest.approx(3)


def test_days_and_tokens_of_a_configuration_are_its_plans(capsys: pytest.CaptureFixture[str]) -> None:
    whole = plan(config(SMOLLM3), gpus=384)
    found = answer(capsys, "--config", SMOLLM3, "--gpus", "384", "--price", "2")["work"]
    assert found["with_attention"]["days"] == pytest.approx(whole.days)
    assert found["with_attention"]["tokens"] == whole.train_tokens
    assert found["by_6nd"]["days"] == pytest.approx(whole.days * whole.flops_per_token_6nd / whole.flops_per_token)
    assert found["with_attention"]["cost"] == pytest.approx(2 * whole.gpu_hours)
    text_of = ["--config", SMOLLM3, "--gpus", "384", "--price", "2"]
    assert main(text_of) == 0
    assert "460,264" in capsys.readouterr().out


def test_peaks_come_from_the_option_then_the_gpu_then_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--config", TINY, "--days", "1"]
    assert answer(capsys, *asked)["work"]["peak_tflops"] == 989
    assert answer(capsys, *asked, "logging.peak_tflops=312")["work"]["peak_tflops"] == 312
    assert answer(capsys, *asked, "logging.peak_tflops=312", "--gpu", "b200")["work"]["peak_tflops"] == 2250
    assert answer(capsys, *asked, "--gpu", "b200", "--peak-tflops", "500")["work"]["peak_tflops"] == 500


def test_the_next_number_of_gpus_that_the_batch_divides_over_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    run = config(SMOLLM3)  # 192 micro-batches, copies of two GPUs
    assert next_devices(run, 1) == 2
    assert next_devices(run, 130) == 192  # 65 copies do not divide 192, nor any up to 95
    assert next_devices(run, 385) is None
    interleaved = config(SMOLLM3, "parallel.pipeline=2", "parallel.virtual_pipeline=2")
    found = next_devices(interleaved, 200)
    assert found is not None and devices(interleaved, found)[0] == found
    assert found == 384  # copies of four GPUs: 96 have two micro-batches each; 64 have three, which is no whole group of two
    assert main(["--config", SMOLLM3, "--days", "50"]) == 0
    assert "that the batch divides over" in capsys.readouterr().out
    assert main(["--config", SMOLLM3, "--days", "10"]) == 0
    assert "batch too small" in capsys.readouterr().out


def test_the_kv_cache_is_as_large_as_the_one_that_transformers_fills() -> None:
    import torch
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    run = config(TINY)
    model = run.model
    network = SmolLM3ForCausalLM(
        SmolLM3Config(
            hidden_size=model.hidden_size,
            intermediate_size=model.ffn_hidden_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.query_groups,
            vocab_size=model.vocab_size,
            pad_token_id=0,
        )
    )
    network.bfloat16()
    with torch.no_grad():
        cache = network(torch.ones(3, 20, dtype=torch.long), use_cache=True).past_key_values
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    found = serving(run, context=20, sequences=3, memory_gib=1)
    assert held == found.bytes_in_all == 3 * found.bytes_per_sequence
    assert found.weights == sum(parameter.nbytes for parameter in network.parameters())


def test_the_figures_of_the_playbook_follow(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/playbook.md").read_text(encoding="utf8")
    work = answer(capsys, "--config", SMOLLM3, "--days", "28")["work"]
    rule, counted = work["by_6nd"], work["with_attention"]
    assert f"{counted['gpus']} GPUs, or {rule['gpus']} by 6 N D" in text
    assert rule["gpus_that_fit"] == counted["gpus_that_fit"] == 384
    work = answer(capsys, "--config", SMOLLM3, "--days", "28", "--mfu", "0.3", "--peak-tflops", "720")["work"]
    assert f"it would be {work['with_attention']['gpus']} GPUs, or {work['by_6nd']['gpus']} by 6 N D" in text
    long_64k = str(ROOT / "configs/smollm3/long_64k.yaml")
    cache = answer(capsys, "--config", long_64k, "--context", "65536", "--sequences", "16", "--gpu", "h100")["serving"]
    one = cache["bytes_per_sequence"] / 2**30
    assert f"{cache['bytes_per_token']:,} bytes a token, {one:.3g} GiB a sequence, and {cache['fitting']} sequences" in text


def test_sequences_fit_beside_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    run = config(SMOLLM3)
    one = 73_728 * 65_536
    room = int(0.9 * 80 * 2**30) - 2 * 3_075_098_624
    assert serving(run, 65_536, 1, memory_gib=80).fitting == room // one == 14
    assert serving(run, 65_536, 1, memory_gib=4).fitting == 0  # the weights alone are larger
    found = answer(capsys, "--config", SMOLLM3, "--sequences", "4", "--gpu", "h200")["serving"]
    assert (found["context"], found["bytes_in_all"]) == (4096, 4 * 4096 * 73_728)
    assert found["memory"] == int(0.9 * 139 * 2**30)
    assert main(["--config", SMOLLM3, "--context", "65536", "--memory", "80"]) == 0
    text = capsys.readouterr().out
    assert "73,728 bytes a token" in text and "14 of them fit a GPU" in text and "GPU-hours" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", TINY, "--parameters", "3e9"], "--config and --parameters both say how large the model is; leave one"),
        (["--tokens", "3e9", "--days", "2"], "neither --config nor --parameters says how large the model is; give one"),
        (["--parameters", "3e9", "--days", "2"], "of --tokens, --gpus and --days two give the third, and given are --days; "),
        (["--config", TINY, "--price", "2"], "given are --tokens; give two of them"),
        (["--parameters", "3e9"], "given are none; give two"),
        (["--parameters", "1", "--tokens", "1", "--gpus", "1", "--days", "1"], "given are --tokens, --gpus, --days; give two"),
        (
            ["--parameters", "3e9", "--context", "4096"],
            "--context and --sequences need a model's layers and heads; give --config",
        ),
        (["--parameters", "3e9", "--days", "2", "train.seed=1"], "settings, --context and --sequences need a model's layers"),
        (["--config", TINY, "--days", "2", "--search"], "--search, --measure and --summary need the whole plan; ask for sizes"),
        (["--config", TINY, "--days", "2", "--memory", "3"], "--memory says where a KV cache must fit; add --context or"),
        (["--config", TINY, "--days", "2", "--mfu", "3"], "mfu=3.0 and peak_tflops=989.0: the first must lie above 0"),
        (["--config", TINY, "--days", "2", "--gpu", "h10"], "gpu='h10' is not a kind of GPU"),
        ([], "--config is missing; give a configuration, or --parameters, --tokens and --days for sizes alone"),
    ],
)
def test_questions_without_an_answer_are_refused_in_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--days", "soon"], "argument --days: 'soon' is not a number; write it like 3e9 or 0.25"),
        (["--tokens", "0"], "argument --tokens: 0 is not a finite number above 0"),
        (["--price", "inf"], "argument --price: inf is not a finite number above 0"),
        (["--gpus", "0"], "argument --gpus: 0 is too small; give 1 or more"),
    ],
)
def test_numbers_that_are_none_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--parameters", "3e9", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_number_without_fit_is_still_refused_by_the_plan() -> None:
    with pytest.raises(ConfigError, match="give 384"):
        devices(config(SMOLLM3), 400)
