"""SmolLM3's whole pre-training as one chain, made tiny: the configuration files themselves, with their 85 datasets, mixtures,
stages, rotary bases and ways of starting, on a model of seconds. Each run takes over the one before it in another layout."""

import json
import math
from pathlib import Path

import jobs
import pytest
import yaml
from ranks import Ranks
from tiny_runs import REPOSITORY

from smol_config import load_mapping

CONFIGS = REPOSITORY / "configs" / "smollm3"
TINY = {
    "model.num_layers": 4,
    "model.hidden_size": 64,
    "model.ffn_hidden_size": 176,
    "model.num_attention_heads": 4,
    "model.num_query_groups": 2,
    "model.vocab_size": 1024,
    "data.held_out": {},
    "train.precision": "fp32",
    "train.micro_batch_size": 1,
    "parallel.context": 1,  # needs Transformer Engine
    "evaluation.every_steps": None,
}
RUNS = {
    "pretrain": {
        "data.sequence_length": 64,
        "data.stages.0.steps": 6,
        "data.stages.1.steps": 4,
        "data.stages.2.steps": 4,
        "train.global_batch_size": 8,
        "optim.schedule.warmup_steps": 2,
        "optim.schedule.decay_steps": 4,
        "optim.learning_rate": 5e-3,
    },
    "long_32k": {
        "data.sequence_length": 256,
        "data.stages.0.steps": 4,
        "train.global_batch_size": 2,
        "optim.schedule.warmup_steps": 1,
        "optim.learning_rate": 1e-4,
        "parallel.tensor": 1,
        "parallel.pipeline": 2,
        "parallel.sequence": False,
    },
    "long_64k": {
        "data.sequence_length": 512,
        "data.stages.0.steps": 3,
        "train.global_batch_size": 2,
        "optim.schedule.warmup_steps": 1,
        "optim.learning_rate": 1e-4,
    },
}
BEFORE = {"long_32k": "pretrain", "long_64k": "long_32k"}


def overrides(name: str, corpus: Path, root: Path) -> list[str]:
    """The file's own settings but for size, length and places; every dataset of it lies in one of two folders."""
    names = load_mapping(CONFIGS / f"{name}.yaml", keep_unset=True)["data"]["datasets"]
    folders = {dataset: str(corpus / "tokens" / ("code" if "stack" in dataset else "docs")) for dataset in names}
    settings = TINY | RUNS[name] | {"data.tokenizer": str(corpus / "tokenizer"), "data.datasets": folders}
    settings["train.output_dir"] = str(root / name)
    if name in BEFORE:
        settings["start_from.checkpoint"] = str(root / BEFORE[name])
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


@pytest.fixture(scope="module")
def chain(ranks: Ranks, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict], Path]:
    """Rank 0's results by run, and the folder of the runs."""
    root = tmp_path_factory.mktemp("chain")
    results = {
        name: ranks.run(
            jobs.train, 2, overrides=overrides(name, corpus, root), save=True, config_file=CONFIGS / f"{name}.yaml"
        )[0]
        for name in RUNS
    }
    return results, root


def state(root: Path, name: str) -> dict:
    newest = max((root / name).glob("iter_*"))
    return json.loads((newest / "state.json").read_text())


def test_the_chain_runs_from_its_start_to_its_end(chain: tuple[dict[str, dict], Path]) -> None:
    results, root = chain
    assert {name: (result["code"], result["start"], len(result["loss"])) for name, result in results.items()} == {
        "pretrain": (0, 0, 14),
        "long_32k": (0, 0, 4),
        "long_64k": (0, 0, 3),
    }
    history = state(root, "pretrain")["data"]["history"]
    assert [(s["stage"], s["steps"], len(s["weights"])) for s in history] == [
        ("stable", 6, 41),
        ("stable-2", 4, 46),
        ("decay", 4, 56),
    ]


def test_each_run_goes_on_with_the_weights_of_the_one_before(chain: tuple[dict[str, dict], Path]) -> None:
    results, _ = chain
    assert results["pretrain"]["loss"][0] == pytest.approx(math.log(1024), abs=0.2)
    for name, before in BEFORE.items():
        assert results[name]["loss"][0] < results["pretrain"]["loss"][0] - 0.5
        assert results[name]["loss"][0] == pytest.approx(results[before]["loss"][-1], abs=0.7), "another text, the same model"


def test_each_run_has_its_own_length_rotary_base_mixture_and_schedule(chain: tuple[dict[str, dict], Path]) -> None:
    results, root = chain
    seen = {}
    for name in RUNS:
        config = yaml.safe_load((max((root / name).glob("iter_*")) / "run.yaml").read_text())
        seen[name] = (config["data"]["sequence_length"], config["model"]["rope_theta"], config["optim"]["schedule"]["kind"])
    assert seen == {
        "pretrain": (64, 50_000, "wsd"),
        "long_32k": (256, 2_000_000, "cosine"),
        "long_64k": (512, 5_000_000, "cosine"),
    }
    for name in BEFORE:
        rates = [step["train/learning_rate"] for step in results[name]["steps"]]
        assert rates[0] == pytest.approx(1e-4) and rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(0)
    assert [len(state(root, name)["data"]["history"][-1]["weights"]) for name in RUNS] == [56, 56, 57]
