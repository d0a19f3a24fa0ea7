"""`inspect`: what it shows is what the loader feeds, in every stage, around skipped samples, and of a run that has begun."""

import json
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from document_files import Tool, python
from inspected_run import BATCH, LENGTH, objects, text_of, write_run
from tokenizers import Tokenizer

from data_tools.run_config import load_data_run
from smol_data.loader import TrainLoader
from smol_data.manifest import read_manifest
from smol_data.order import Location, Order, fingerprint
from smol_data.schedule import Segment, batch_at, resolve_segments, total_steps
from smol_data.shards import open_datasets


@pytest.fixture(scope="module")
def config(corpus: Path, tokenizer: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("inspect"), corpus, tokenizer, tokens)


def left_out(seen: dict[str, Any]) -> list[int]:
    """Places in the window of the targets that are marked as left out of the loss."""
    places, at = [], 0
    for document in seen["documents"]:
        if document["masked"]:
            places.append(at)
        at += document["end"] - document["first"]
    return places


def fed(config: Path, segments: list[Segment], first_step: int) -> list[list[tuple[list[int], list[int]]]]:
    """Per step the windows that the loader feeds: ids [S + 1], and places of the targets that its loss mask leaves out."""
    data = load_data_run(config).data
    loader = TrainLoader(data, segments, 4, rank=0, world_size=1, device=torch.device("cpu"), start_step=first_step)
    steps = []
    for step in range(first_step, total_steps(segments)):
        windows = []
        for _ in range(loader.micro_batches(step)):
            batch = next(loader)
            rows = torch.cat([batch.tokens.view(-1, LENGTH), batch.labels.view(-1, LENGTH)[:, -1:]], dim=1)
            for ids, mask in zip(rows, batch.loss_mask.view(-1, LENGTH), strict=True):
                windows.append((ids.tolist(), (torch.nonzero(mask == 0).view(-1) + 1).tolist()))
        steps.append(windows)
    loader.close()
    return steps


def test_every_step_shows_the_text_and_the_masked_targets_that_the_loader_feeds(
    tool: Tool, config: Path, tokenizer: Path
) -> None:
    decoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    segments = load_data_run(config).segments()
    assert [segment.stage for segment in segments] == ["stable", "stable", "decay"]  # the skipped range cuts the first
    masked = 0
    for step, windows in enumerate(fed(config, segments, 0)):
        outcome = tool("inspect", "--config", config, "--step", step + 1, "--json", "--limit", 99)
        assert outcome.code == 0, outcome
        seen = objects(outcome.out)
        batch = batch_at(segments, step)
        assert [(one["sample"], one["step"], one["stage"]) for one in seen] == [
            (sample, step + 1, batch.stage) for sample in range(batch.first_sample, batch.first_sample + BATCH)
        ]
        for one, (ids, places) in zip(seen, windows, strict=True):
            assert text_of(one) == decoder.decode(ids, skip_special_tokens=False)
            assert left_out(one) == places
            assert (one["tokens"], one["targets"]) == (LENGTH, LENGTH - len(places))
            masked += len(places)
    assert masked > 30  # else the test has compared nothing


def test_a_location_is_the_orders_and_documents_are_the_indexs(tool: Tool, config: Path) -> None:
    data = load_data_run(config).data
    segments = load_data_run(config).segments()
    datasets = open_datasets(data.datasets, LENGTH, data.tokenizer)
    order = Order(segments, data.seed, {name: dataset.num_windows for name, dataset in datasets.items()})
    outcome = tool("inspect", "--config", config, "--samples", "24:40", "--json", "--no-text")
    seen = objects(outcome.out)
    assert [one["sample"] for one in seen] == list(range(24, 40))
    for one in seen:
        place = order.locate(one["sample"])
        assert {name: one[name] for name in Location._fields} == place._asdict()
        dataset = datasets[place.dataset]
        assert one["first_token"] == place.window * LENGTH
        at = one["first_token"]
        for document in one["documents"]:
            assert "text" not in document
            assert document["document"] == dataset.files.document_at(at)
            ids = dataset.files.tokens(at - document["first"], document["length"])  # the whole document
            eos = dataset.manifest.eos_id
            assert (ids[-1], (ids[:-1] == eos).any()) == (eos, False)
            at += document["end"] - document["first"]
        assert at == one["first_token"] + LENGTH + 1


def test_a_step_in_the_millions_is_answered_from_its_number_alone(tool: Tool, config: Path) -> None:
    settings = ["data.stages.0.steps=3000000", "data.stages.1.tokens=100000000000", "train.global_batch_size=576"]
    data_run = load_data_run(config, settings)
    batch = batch_at(data_run.segments(), 3_100_000)
    tracemalloc.start()
    outcome = tool("inspect", "--config", config, "--step", 3_100_001, "--json", "--no-text", *settings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    seen = objects(outcome.out)
    assert [one["sample"] for one in seen] == list(range(batch.first_sample, batch.first_sample + 576))
    assert batch.first_sample > 1_700_000_000
    assert {one["stage"] for one in seen} == {"decay"}
    assert min(one["epoch"] for one in seen) > 1000
    assert peak < 20e6  # bytes; the samples before are 1.8 thousand million


def test_a_batch_ramp_is_counted_as_the_trainer_counts_it(config: Path) -> None:
    plain = load_data_run(config)
    ramped = load_data_run(config, ["train.batch_ramp=[{until_step: 2, global_batch_size: 1}]"])
    size, first = plain.batch.global_batch_size, ramped.segments()[0]
    assert (first.steps, first.batch_size, ramped.segments()[1].batch_size) == (2, 1, size)
    missing = 2 * (size - 1) * plain.data.sequence_length
    assert sum(ramped.tokens_by_dataset().values()) == pytest.approx(sum(plain.tokens_by_dataset().values()) - missing)


def test_help_gives_examples_at_once(tool: Tool) -> None:
    for command in ("inspect", "stats", "mixture"):
        outcome = tool(command, "--help")
        assert outcome.code == 0
        assert f"example:\n  python -m data_tools {command} " in outcome.out
    code = "import sys; from data_tools.__main__ import build_parser; build_parser().format_help(); print(*sys.modules)"
    loaded = set(python("-c", code).out.split())
    assert {"data_tools.inspect_samples", "data_tools.stats", "data_tools.mixture"} <= loaded
    assert not {"torch", "matplotlib", "tokenizers", "transformers", "datatrove", "pyarrow"} & loaded


# --- a run that has begun ------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(config: Path, tmp_path: Path) -> Path:
    """A run's folder after 4 steps of 8 samples, which goes on with 16 samples a step; and an unfinished checkpoint."""
    from smol_train.checkpoint_folder import MARKER, TrainState, folder_name

    mapping = yaml.safe_load(config.read_text(encoding="utf8"))
    data = load_data_run(config).data
    segments = load_data_run(config).segments()
    digests = {name: read_manifest(folder).digest for name, folder in data.datasets.items()}
    mapping["train"]["global_batch_size"] = 16
    for step in (2, 4, 5):
        checkpoint = tmp_path / "run" / folder_name(step)
        checkpoint.mkdir(parents=True)
        stored = fingerprint(segments, step, data.seed, LENGTH, digests)
        state = TrainState(step=step, samples=batch_at(segments, step).first_sample, data=stored)
        (checkpoint / "state.json").write_text(json.dumps(asdict(state)), encoding="utf8")
        (checkpoint / "run.yaml").write_text(yaml.safe_dump(mapping), encoding="utf8")
        if step < 5:
            (checkpoint / MARKER).write_text("")
    return tmp_path / "run"


def test_a_begun_run_is_shown_as_it_ran_and_as_it_goes_on(tool: Tool, config: Path, begun: Path, tokenizer: Path) -> None:
    data = load_data_run(config).data
    history = [segment for segment in load_data_run(config).segments() if segment.stage == "stable"]
    history = [history[0], Segment(**(asdict(history[1]) | {"steps": 4 - history[0].steps}))]
    segments = resolve_segments(data.stages, LENGTH, 16, data.skip_samples, history)
    decoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    assert [batch_at(segments, step).batch_size for step in (3, 4)] == [8, 16]
    for step, windows in enumerate(fed(config, segments, 0)):
        outcome = tool("inspect", "--run", begun, "--step", step + 1, "--json", "--limit", 99)
        assert outcome.code == 0, outcome
        assert [text_of(one) for one in objects(outcome.out)] == [decoder.decode(ids, False) for ids, _ in windows]
    newest = tool("inspect", "--run", begun / "iter_0000004", "--samples", "32:40", "--no-text").out
    assert tool("inspect", "--run", begun, "--samples", "32:40", "--no-text").out == newest


def test_a_begun_run_that_cannot_be_shown_is_refused(tool: Tool, config: Path, begun: Path, tmp_path: Path) -> None:
    newest = begun / "iter_0000004"
    stored = json.loads((newest / "state.json").read_text())
    ask = ("inspect", "--run", begun, "--step", "1")

    def refused(change: dict[str, Any] | None) -> str:
        text = "{" if change is None else json.dumps(stored | {"data": change})
        (newest / "state.json").write_text(text, encoding="utf8")
        outcome = tool(*ask)
        assert (outcome.code, outcome.out) == (2, "")
        return outcome.err

    assert "state.json cannot be read" in refused(None)
    assert "has consumed no data (converted weights?); give --config" in refused({})
    changed = stored["data"] | {"manifests": stored["data"]["manifests"] | {"docs": "f" * 64}}
    assert "is not the one that the run has consumed: manifest digest" in refused(changed)
    history = [segment | {"weights": {"code": 1, "gone": 1}} for segment in stored["data"]["history"]]
    assert "put them back" in refused(stored["data"] | {"history": history})  # the stage in the configuration differs
    assert "no whole checkpoint there; give a run's folder" in tool("inspect", "--run", tmp_path, "--step", "1").err
    run_yaml = yaml.safe_load((newest / "run.yaml").read_text())
    run_yaml["data"]["datasets"]["gone"] = run_yaml["data"]["datasets"].pop("docs")
    run_yaml["data"]["stages"] = [{"name": "later", "steps": 1, "weights": {"gone": 1}}]
    history = [segment | {"stage": "later", "weights": {"docs": 1}} for segment in stored["data"]["history"]]
    run_yaml["data"]["stages"][0]["weights"] = {"docs": 1}
    (newest / "run.yaml").write_text(yaml.safe_dump(run_yaml), encoding="utf8")
    assert "'docs' is not in data.datasets" in refused(stored["data"] | {"history": history})
