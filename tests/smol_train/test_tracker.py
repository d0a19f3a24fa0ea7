"""The experiment tracker: what it is told, and that a run does not hang on it. The packages themselves are stood in for."""

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from smol_config import ConfigError
from smol_train.callbacks.prometheus import PrometheusFile
from smol_train.callbacks.tracker import Tracker
from smol_train.sections.watch import LoggingConfig


class Stub(ModuleType):
    """Takes the calls that trackio and wandb both take."""

    def __init__(self, name: str, fails: str = "") -> None:
        super().__init__(name)
        self.calls: list[tuple] = []
        self.fails = fails
        self.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]

    def _take(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] == self.fails:
            raise ConnectionError("no way out")

    def init(self, *, project: str, group: str, name: str, config: dict) -> None:
        self._take("init", project, group, name, config["train"])

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        self._take("log", metrics, step)

    def finish(self) -> None:
        self._take("finish")


def trainer(step: int, every: int = 1, main: bool = True) -> Any:
    dump = {"train": {"seed": 6}}
    return SimpleNamespace(
        ranks=SimpleNamespace(is_main=main),
        output_dir=Path("runs/smollm3"),
        state=SimpleNamespace(step=step, tokens=512 * step),
        total_steps=100,
        verdict=SimpleNamespace(update=True),
        config=SimpleNamespace(logging=LoggingConfig(every_steps=every), model_dump=lambda **_: dump),
    )


@pytest.fixture(params=["trackio", "wandb"])
def stub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Stub:
    made = Stub(request.param)
    monkeypatch.setitem(sys.modules, request.param, made)
    return made


def tracker(stub: Stub) -> Tracker:
    return Tracker(LoggingConfig(tracker=stub.__name__, tracker_project="mine"))  # type: ignore[arg-type]


def test_a_tracker_gets_what_is_written_and_each_attempt_is_a_run_of_its_own(stub: Stub) -> None:
    callback = tracker(stub)
    callback.on_fit_start(trainer(20))
    for step in (21, 22, 23):
        callback.on_step_end(
            trainer(step, every=2), {"train/loss": float(step), **({"eval/loss/x": 1.0} if step == 23 else {})}
        )
    callback.on_rolled_back(trainer(15), SimpleNamespace())  # type: ignore[arg-type]
    callback.close()
    begun = [("init", "mine", "smollm3", name, {"seed": 6}) for name in ("smollm3-0000020", "smollm3-0000015")]
    assert stub.calls == [
        begun[0],
        ("log", {"train/loss": 22.0, "tokens": 512 * 22}, 22),
        ("log", {"train/loss": 23.0, "eval/loss/x": 1.0, "tokens": 512 * 23}, 23),
        ("finish",),
        begun[1],
        ("finish",),
    ]


def test_only_the_main_rank_talks_to_it(stub: Stub) -> None:
    callback = tracker(stub)
    callback.on_fit_start(trainer(0, main=False))
    callback.on_step_end(trainer(1, main=False), {})
    callback.close()
    assert stub.calls == []


def test_a_tracker_that_fails_is_told_once_and_then_left_alone(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    stub.fails = "log"
    callback = tracker(stub)
    callback.on_fit_start(trainer(0))
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            callback.on_step_end(trainer(step), {})
        callback.close()
    assert [call[0] for call in stub.calls] == ["init", "log"]
    assert caplog.messages == [f"{stub.__name__} failed (ConnectionError: no way out); this run goes on without it"]


def test_a_tracker_that_is_not_installed_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tracker=wandb, but the package wandb is not installed; pip install wandb, or"):
        Tracker(LoggingConfig(tracker="wandb"))


def test_a_prometheus_file_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    callback = PrometheusFile(f"{tmp_path}/file/x.prom", seconds=0.0)
    for step in (1, 2):
        callback.on_step_end(trainer(step), {"train/loss": 1.0})
    [said] = caplog.messages
    assert "logging.prometheus_file=" in said and "cannot be written" in said
