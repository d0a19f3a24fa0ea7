"""The rehearsal of a run on two virtual nodes: the real trainer, srun, exporter, s5cmd, and a webhook."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alert_channel import Channel, listening
from s3_double import S3Double, s3_double
from slurm_cluster import Cluster, Submitter
from tiny_runs import QUICKSTART, tiny_overrides

from conversion.upload import s5cmd

pytestmark = pytest.mark.slow


@pytest.fixture
def channel() -> Iterator[Channel]:
    with listening() as channel:
        yield channel


@pytest.fixture
def s3() -> Iterator[S3Double]:
    with s3_double() as double:
        yield double


def rehearse(cluster: Cluster, submit: Submitter, **environment: str) -> dict[str, Any]:
    """Submit it; the verdict."""
    outcome = submit("rehearsal", str(QUICKSTART), *submit.overrides, **environment)
    assert outcome.code == 0, outcome
    job = outcome.out.split()[1].rstrip(":")
    ended = cluster.wait_for_state(job, "COMPLETED", "FAILED")
    verdict: dict[str, Any] = json.loads((submit.run / "rehearsal" / "verdict.json").read_text())
    assert ended == ("COMPLETED" if verdict["verdict"] == "passed" else "FAILED"), submit.log()
    assert ended == "COMPLETED" or cluster.field(job, "ExitCode") == "93:0", "nobody starts it again"
    return verdict


def settings(corpus: Path, run: Path) -> list[str]:
    # Windows long enough for a step to take longer than killing a rank does; the watchdog's look is the heartbeat's.
    slow = ["data.sequence_length=512", "train.global_batch_size=16", "watchdog.minutes=0.1", "watchdog.pause_minutes=0.5"]
    return [*tiny_overrides(corpus, run), *slow, "checkpoint.async_save=true", "spikes.sigma=50"]


def test_a_run_goes_through_its_whole_life_in_twenty_steps(
    cluster: Cluster, submit: Submitter, corpus: Path, s3: S3Double, channel: Channel
) -> None:
    environment = {**s3.environment, "CHANNEL": channel.url}
    assert cluster.run(s5cmd.find_program(), "mb", "s3://bucket", **environment).code == 0
    submit.overrides = [
        *settings(corpus, submit.run),
        "checkpoint.upload=s3://bucket/runs",
        "alerts.webhook=${CHANNEL}",
    ]
    verdict = rehearse(cluster, submit, **environment)
    assert [(part["name"], part["verdict"]) for part in verdict["parts"]] == [
        (name, "passed") for name in ("killed", "stopped", "finished", "exported", "uploaded", "alerted")
    ], submit.log()
    told = {part["name"]: part["sentence"] for part in verdict["parts"]}
    assert told["killed"].startswith("rank 1 on n2 killed after step")
    lines = [json.loads(line) for line in (submit.run / "rehearsal" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert any(key.endswith("/runs/rehearsal/run/iter_0000020/upload.json") for key in s3.arrived)
    assert "rehearsal: this is where alerts" in channel.posts[-1][1]["text"]
    assert not list(submit.run.glob("rehearsal/run/iter_*")) and not (submit.run / "rehearsal" / "hf").exists()
    assert not list(submit.run.glob("iter_*")), "the run itself has not begun"


def test_what_fails_is_named_and_what_needs_it_is_skipped(
    cluster: Cluster, submit: Submitter, corpus: Path, channel: Channel, tmp_path: Path
) -> None:
    channel.codes = [500] * 3
    submit.overrides = [*settings(corpus, submit.run), "alerts.webhook=${CHANNEL}", f"data.datasets.docs={tmp_path / 'none'}"]
    verdict = rehearse(cluster, submit, CHANNEL=channel.url)
    found = [(part["name"], part["verdict"]) for part in verdict["parts"]]
    skipped = [(name, "skipped") for name in ("stopped", "finished", "exported", "uploaded")]
    assert found == [("killed", "FAILED"), *skipped, ("alerted", "FAILED")]
    assert "the ranks ended with 93 after step 0, before step 7 and a checkpoint" in verdict["parts"][0]["sentence"]
    assert "did not take the message" in verdict["parts"][-1]["sentence"]
