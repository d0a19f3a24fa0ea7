"""Who is slow and why: on tables made by hand, and on real ranks of which one sleeps."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import telemetry_jobs
from ranks import Ranks

from smol_train.stragglers import PARTS, Table, ThroughputWatch, cause, slowest, step_seconds

USUAL = [0.01, 1.0, 0.1, 0.05, 0.02]
RANKS = 8


def table(**changes: dict[int, float]) -> Table:
    """8 ranks in step; `data_wait={3: 0.5}` gives rank 3 half a second more of it."""
    made = np.array([USUAL] * RANKS)
    for part, by_rank in changes.items():
        for rank, seconds in by_rank.items():
            made[rank, PARTS.index(part)] += seconds
    return made


def everyone(seconds: float, but: int | None = None) -> dict[int, float]:
    return {rank: seconds for rank in range(RANKS) if rank != but}


@pytest.mark.parametrize(
    ("now", "part", "ranks"),
    [
        pytest.param(table(data_wait={3: 0.5}, reduction=everyone(0.5, but=3)), "data_wait", [3], id="data of one rank"),
        pytest.param(
            table(data_wait={3: 0.5}, compute={2: 0.5}, reduction=everyone(0.5)), "data_wait", [3], id="its copy waits"
        ),
        pytest.param(table(data_wait=everyone(0.4)), "data_wait", [], id="data of all ranks"),
        pytest.param(table(compute={6: 0.5, 7: 0.5}, reduction=everyone(0.5)), "compute", [6, 7], id="compute of one copy"),
        pytest.param(table(compute=everyone(0.3)), "compute", [], id="compute of all ranks"),
        pytest.param(table(between_steps={0: 0.4}, reduction=everyone(0.4, but=0)), "between_steps", [0], id="slow logging"),
        pytest.param(table(reduction=everyone(0.4)), "communication", [], id="slow network"),
        pytest.param(
            table(between_steps=everyone(2.0), optimizer=everyone(0.4)), "communication", [], id="evaluations are no cause"
        ),
    ],
)
def test_the_cause_is_what_grew_and_where(now: Table, part: str, ranks: list[int]) -> None:
    found = cause(now, table())
    assert (found.part, found.ranks) == (part, ranks)


def test_the_slowest_rank_is_the_last_to_come_to_the_reduction() -> None:
    assert slowest(table(compute={5: 0.1}, reduction=everyone(0.1, but=5))) == 5
    assert step_seconds(table()) == pytest.approx(1.16)


def test_a_drop_that_lasts_is_told_once_and_its_end_is_seen() -> None:
    watch = ThroughputWatch(drop=0.2, windows=2)
    slow = table(data_wait={3: 0.5}, reduction=everyone(0.5, but=3))
    assert [watch.add(table()) for _ in range(5)] == [None] * 5
    assert watch.add(slow) is None and not watch.fallen  # one slow window is no loss for good
    assert watch.add(table()) is None
    found = [watch.add(slow) for _ in range(300)]
    assert found[0] is None and found[1] is not None and found[1].ranks == [3]
    assert found[2:] == [None] * 298 and watch.fallen
    assert watch.share(slow) == pytest.approx(1.16 / 1.66)  # what lasts does not become the rule
    watch.add(table())
    assert not watch.fallen


def test_steps_of_another_size_are_compared_with_their_like() -> None:
    watch = ThroughputWatch(drop=0.2, windows=1)
    for _ in range(5):
        watch.add(table())
    watch.forget()
    assert [watch.add(2 * table()) for _ in range(5)] == [None] * 5 and not watch.fallen


def test_steps_that_vary_raise_no_alarm() -> None:
    """Step times scatter by 5 % from window to window, ranks by 2 %, and one in 100 loses a quarter: 5,000 windows."""
    generator = np.random.default_rng(0)
    watch = ThroughputWatch(drop=0.2, windows=2)
    lost = generator.random(5_000) < 0.01
    lost[1:] &= ~lost[:-1]
    for hit in lost:
        scatter = generator.normal(1, 0.05) * generator.normal(1, 0.02, (RANKS, 1)) * (1.33 if hit else 1)
        assert watch.add(table() * scatter) is None


# --- real ranks ------------------------------------------------------------------------------------------------------------


def told(run: Path) -> list[str]:
    lines = map(json.loads, (run / "alerts.jsonl").read_text().splitlines())
    return [line["text"] for line in lines if line["event"] == "throughput_drop"]


SETTINGS = ["logging.ranks_every_steps=5", "logging.throughput_drop=0.6", "data.stages.1.steps=40"]
"""The slow rank's steps are five times as long as any before, so that a busy machine is not taken for a slow rank."""


def test_a_rank_that_sleeps_is_named_with_its_host_and_where_it_sleeps(
    ranks: Ranks, overrides: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    both = ranks.run(
        telemetry_jobs.train_with_a_slow_rank,
        2,
        overrides=[*overrides, *SETTINGS],
        run=run,
        rank=1,
        data=range(21, 31),
        compute=range(36, 46),
    )
    assert [report["step"] for report in both[0]] == [report["step"] for report in both[1]] == list(range(5, 50, 5))
    first, second = told(run)
    host = socket.gethostname()
    assert "data wait grew by" in first and f"on rank 1 (host {host})" in first and first.startswith("step 30: ")
    assert "compute grew by" in second and f"on rank 1 (host {host})" in second and second.startswith("step 45: ")
    for report in both[0]:
        slow = report["step"] in (25, 30, 40, 45)
        assert ("perf/throughput_of_median" in report) == (report["step"] > 15)
        assert not slow or (report["ranks/slowest"] == 1 and report["perf/throughput_of_median"] < 0.4)
        late = report["ranks/data_wait_seconds/max"] + report["ranks/compute_seconds/max"]
        assert not slow or late > report["ranks/reduction_seconds/min"]
    assert sum(report["data/read_bytes_per_second"] for report in both[0]) > 0
    assert all(report["data/read_seconds_max"] >= report["data/read_seconds_mean"] >= 0 for report in both[0])


def test_within_a_copy_of_the_model_its_ranks_are_named_together(ranks: Ranks, overrides: list[str], tmp_path: Path) -> None:
    ranks.run(
        telemetry_jobs.train_with_a_slow_rank,
        4,
        overrides=[*overrides, *SETTINGS, "data.stages.1.steps=24", "parallel.tensor=2"],
        run=tmp_path / "run",
        rank=3,
        data=range(0),
        compute=range(21, 31),
    )
    [text] = told(tmp_path / "run")
    host = socket.gethostname()
    assert f"on rank 2 (host {host}), 3 (host {host}); they share one copy of the model" in text and "compute grew" in text
