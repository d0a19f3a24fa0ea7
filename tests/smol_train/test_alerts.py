"""Alerts against a real HTTP server: one that listens, one that fails, one that hangs, and none at all."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alert_channel import Channel, listening

from smol_config import ConfigError, load, parse, to_yaml
from smol_train.callbacks import alerts as alerts_module
from smol_train.callbacks.alerts import Alerts
from smol_train.config import RunConfig
from smol_train.sections.watch import AlertsConfig


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Channel]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with listening() as server:
        yield server


def settings(url: str, **others: object) -> AlertsConfig:
    return parse(AlertsConfig, {"webhook": url, **others}, source="test", at="alerts")


def written(run: Path) -> list[tuple[str, str]]:
    return [(line["event"], line["text"]) for line in map(json.loads, (run / "alerts.jsonl").read_text().splitlines())]


def test_wanted_events_reach_the_channel_in_order_and_all_are_written_down(channel: Channel, tmp_path: Path) -> None:
    with Alerts(settings(channel.url, events=["started", "done"]), tmp_path / "smollm3", is_main=True) as alerts:
        alerts.alert("started", "step 0 of 10")
        alerts.alert("resumed", "not wanted")
        alerts.alert("done", "10 steps")
    assert [kind for kind, _ in channel.posts] == ["application/json"] * 2
    assert [list(body) for _, body in channel.posts] == [["text"]] * 2
    texts = [body["text"] for _, body in channel.posts]
    assert texts[0].startswith("smollm3 on ") and texts[0].endswith(": started: step 0 of 10")
    assert texts[1].endswith(": done: 10 steps")
    assert written(tmp_path / "smollm3") == [("started", "step 0 of 10"), ("resumed", "not wanted"), ("done", "10 steps")]


def test_only_the_main_rank_tells(channel: Channel, tmp_path: Path) -> None:
    with Alerts(settings(channel.url), tmp_path / "run", is_main=False) as alerts:
        alerts.alert("started", "x")
    assert not channel.posts and not (tmp_path / "run").exists()


def test_a_server_that_fails_is_asked_three_times(
    channel: Channel, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts_module, "FIRST_WAIT_SECONDS", 0.01)
    channel.codes = [500, 503, 200, 500, 500, 500]
    with Alerts(settings(channel.url), tmp_path, is_main=True) as alerts, caplog.at_level(logging.WARNING):
        alerts.alert("started", "third time lucky")
        alerts.alert("stalled", "never heard")
        alerts.drain()
        assert [body["text"].rpartition(": ")[2] for _, body in channel.posts] == ["third time lucky"] * 3 + ["never heard"] * 3
        assert "alert dropped after 3 tries (HTTP 500)" in caplog.text and "never heard" in caplog.text
        assert "SECRET" not in caplog.text
        alerts.alert("done", "still there")
    assert channel.posts[-1][1]["text"].endswith("still there")


def test_a_server_that_hangs_holds_up_neither_training_nor_its_end(
    channel: Channel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    channel.codes = [0] * 1000
    started = time.monotonic()
    with Alerts(settings(channel.url), tmp_path, is_main=True, drain_seconds=0.5) as alerts:
        for number in range(alerts_module.WAITING + 50):  # more than may wait: the rest is dropped, not waited for
            alerts.alert("started", str(number))
    assert time.monotonic() - started < 10 <= alerts.try_seconds  # less than one try: nothing waited for the server
    assert len(written(tmp_path)) == alerts_module.WAITING + 50 == alerts.dropped
    assert "alerts dropped: not delivered within 0.5 s of the end" in caplog.text


def test_nothing_is_posted_or_logged_after_the_end(channel: Channel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    channel.codes = [500] * 1000
    with Alerts(settings(channel.url), tmp_path, is_main=True, drain_seconds=0.1) as alerts:
        for number in range(3):
            alerts.alert("started", str(number))
    told = len(caplog.records)
    alerts.poster.join(timeout=10)
    assert not alerts.poster.is_alive() and len(caplog.records) == told and len(channel.posts) <= 1 and alerts.dropped == 3


def test_no_server_and_no_disk_cost_nothing_but_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts_module, "FIRST_WAIT_SECONDS", 0.01)
    (tmp_path / "run").write_text("a file where the folder should be")
    with (
        Alerts(settings("http://127.0.0.1:9/SECRET"), tmp_path / "run", is_main=True) as alerts,
        caplog.at_level(logging.WARNING),
    ):
        alerts.alert("started", "unheard")
    assert "alerts.jsonl cannot be written" in caplog.text
    assert "alert dropped after 3 tries (URLError)" in caplog.text and "SECRET" not in caplog.text


def test_an_exception_is_told_in_one_line_and_goes_on(channel: Channel, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="disk full"),
        Alerts(settings(channel.url), tmp_path, is_main=True),
    ):
        raise RuntimeError("disk full\nat iter_0001000")
    assert written(tmp_path) == [("crashed", "RuntimeError: disk full")]
    assert channel.posts[-1][1]["text"].endswith("crashed: RuntimeError: disk full")


def test_the_webhook_is_in_no_stored_configuration(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_runs import QUICKSTART

    monkeypatch.setenv("SLACK_WEBHOOK", "https://hooks.example/SECRET")
    config = load(RunConfig, QUICKSTART, [*overrides, "alerts.webhook=${SLACK_WEBHOOK}"])
    assert config.alerts.webhook is not None and config.alerts.webhook.get_secret_value() == "https://hooks.example/SECRET"
    assert "SECRET" not in to_yaml(config) + repr(config)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"webhook": "hooks.example/SECRET"}, r"alerts.webhook='hooks.ex'... is not an http or https URL; give the whole URL"),
        ({"events": ["finished"]}, r"alerts.events.0: Input should be 'started', .*got 'finished'"),
    ],
)
def test_bad_settings_are_refused(mapping: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(AlertsConfig, mapping, source="test", at="alerts")


def test_a_webhook_that_a_dry_run_does_not_know_is_accepted() -> None:
    assert settings("${SLACK_WEBHOOK}").problems() == []
