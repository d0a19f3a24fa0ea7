"""The table of metrics in docs/telemetry.md against what a run writes, and what is made from its names."""

import json
import re
from pathlib import Path

import pytest
import telemetry_jobs
from ranks import Ranks
from tiny_runs import REPOSITORY

from smol_config import ConfigError, parse
from smol_train.callbacks.prometheus import exposition
from smol_train.sections.watch import LoggingConfig
from smol_train.tensorboard_layout import LAYOUT

ROW = re.compile(r"\| `([\w/]+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|")
OF_STEP = {"smol_step", "smol_tokens", "smol_last_step_time"}


def documented() -> dict[str, str]:
    """Metric -> in which steps, from the table."""
    lines = (REPOSITORY / "docs" / "telemetry.md").read_text().splitlines()
    rows = [match for line in lines if (match := ROW.fullmatch(line)) and "/" in match[1]]
    return {row[1]: row[2] for row in rows}


def as_pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\b(DATASET|GROUP|STATISTIC)\b", r"[^/]+", name))


@pytest.fixture(scope="module")
def written(ranks: Ranks, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in which everything that the CPU can tell is switched on."""
    from tiny_runs import tiny_overrides

    run = tmp_path_factory.mktemp("telemetry") / "run"
    settings = [
        "logging.peak_tflops=0.1",
        "logging.parameter_norms_every_steps=5",
        "logging.ranks_every_steps=2",
        "logging.noise_scale_every_steps=5",
        "logging.throughput_drop=0.99",
        f"logging.prometheus_file={run}/metrics.prom",
        "evaluation.every_steps=5",
    ]
    assert ranks.run(telemetry_jobs.train_as_the_command_does, 1, overrides=[*tiny_overrides(corpus, run), *settings]) == [0]
    return run


@pytest.fixture(scope="module")
def names(written: Path) -> set[str]:
    lines = map(json.loads, (written / "metrics.jsonl").read_text().splitlines())
    return {name for line in lines for name in line if "/" in name}


def test_every_metric_that_a_run_writes_is_in_the_table_once(names: set[str]) -> None:
    rows = list(map(as_pattern, documented()))
    assert {name: sum(bool(row.fullmatch(name)) for row in rows) for name in names} == dict.fromkeys(names, 1)


def test_every_metric_in_the_table_is_written_but_for_those_of_a_gpu(names: set[str]) -> None:
    unseen = [row for row, when in documented().items() if when != "GPU" and not any(map(as_pattern(row).fullmatch, names))]
    assert unseen == []


def test_the_rows_of_a_gpu_are_what_the_code_reads() -> None:
    from smol_train.nvml import READINGS, THROTTLE_REASONS

    read = {*READINGS, *(f"device/throttle/{name}" for name in THROTTLE_REASONS.values()), "device/peak_memory_gib"}
    assert {row for row, when in documented().items() if when == "GPU"} == read


def test_every_chart_of_the_prepared_tensorboard_page_has_its_metrics(written: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    patterns = [re.compile(tag) for tab in LAYOUT.values() for _, tags in tab.values() for tag in tags]
    examples = [re.sub("DATASET|GROUP|STATISTIC", "x", name) for name in documented()]
    assert [pattern.pattern for pattern in patterns if not any(map(pattern.match, examples))] == []
    board = EventAccumulator(str(written / "tensorboard"))
    board.Reload()
    assert "custom_scalars__config__" in board.Tags()["tensors"]


def test_every_query_of_the_dashboard_names_metrics_that_exist() -> None:
    dashboard = json.loads((REPOSITORY / "docs" / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in dashboard["templating"]["list"]]
    asked = {name for query in queries for name in re.findall(r"\bsmol_\w+", query)}
    exist = {"_".join(["smol", *name.split("/")[:2]]) for name in documented()} | OF_STEP
    assert len(asked) > 20 and asked - exist == set()


def test_the_prometheus_file_has_the_last_value_of_every_metric(written: Path, names: set[str]) -> None:
    text = (written / "metrics.prom").read_text()
    lines = list(map(json.loads, (written / "metrics.jsonl").read_text().splitlines()))
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert len(samples) == len(names) + len(OF_STEP)
    [*_, last] = (line["train/loss/code"] for line in lines if "train/loss/code" in line)
    assert float(samples['smol_train_loss{run="run",of="code"}']) == last
    assert float(samples['smol_step{run="run"}']) == lines[-1]["step"] == 10
    assert float(samples['smol_train_parameter_norm{run="run",of="mlp"}']) > 0
    assert text.count("# TYPE smol_train_loss gauge\n") == 1 and not list(written.glob("*.partial"))


def test_numbers_and_names_are_written_as_prometheus_reads_them() -> None:
    nan, infinite = float("nan"), float("inf")
    text = exposition({"train/loss": nan, "train/loss/a\\b": infinite, "perf/x": -infinite, "step": 3.0}, 'the "run"')
    assert text == (
        "# TYPE smol_train_loss gauge\n"
        'smol_train_loss{run="the \\"run\\""} NaN\n'
        'smol_train_loss{run="the \\"run\\"",of="a\\\\b"} +Inf\n'
        "# TYPE smol_perf_x gauge\n"
        'smol_perf_x{run="the \\"run\\""} -Inf\n'
        "# TYPE smol_step gauge\n"
        'smol_step{run="the \\"run\\""} 3.0\n'
    )


def test_a_file_that_the_collector_would_not_read_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"prometheus_file=metrics\.txt would not be read by node_exporter; let it end in \.prom"
    ):
        parse(LoggingConfig, {"prometheus_file": "metrics.txt"}, source="test", at="logging")
