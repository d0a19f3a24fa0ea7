"""kill -9 at every moment of a save, and SIGTERM in the middle of one, against the real command on two ranks."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import watch_jobs
from ranks import Ranks
from tiny_runs import QUICKSTART, tiny_overrides

import pretrain_smol
from smol_train.checkpoint_folder import MARKER, whole_checkpoints

MOMENTS: dict[str, Callable[[Path], bool]] = {
    "planning": lambda partial: partial.is_dir() and not list(partial.glob("*.distcp")),
    "writing": lambda partial: bool(list(partial.glob("*.distcp"))),
    "before the marker": lambda partial: (partial / "metadata.json").exists() and not (partial / MARKER).exists(),
    "before the name": lambda partial: (partial / MARKER).exists(),
}
"""What there is to be seen of a save; save_jobs.py rests for a second at each."""


def overrides(corpus: Path, run: Path) -> list[str]:
    steps = ["data.stages.0.steps=14", "data.stages.1.steps=4", "train.precision=bf16", "checkpoint.every_steps=4"]
    return [*tiny_overrides(corpus, run), *steps]


def settings(corpus: Path, run: Path, *others: str) -> list[str]:
    return ["--config", str(QUICKSTART), *overrides(corpus, run), *others]


@pytest.fixture(scope="module")
def whole(ranks: Ranks, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert ranks.run(pretrain_smol.train, 2, config_path=str(QUICKSTART), overrides=overrides(corpus, run)) == [0, 0]
    return run


def run_until(
    command: list[str], moment: Callable[[], bool], then: Callable[[list[psutil.Process]], object]
) -> list[int | None]:
    """Start two ranks, do `then` to all their processes at the `moment`, wait; returns their exit codes."""
    with watch_jobs.world(2, command) as ranks:
        deadline = time.monotonic() + 240
        while not moment():
            assert all(rank.poll() is None for rank in ranks), "the run ended before its time"
            assert time.monotonic() < deadline, "the moment never came"
            time.sleep(0.005)
        parents = [psutil.Process(rank.pid) for rank in ranks]
        family = [process for parent in parents for process in (parent, *parent.children(recursive=True))]
        then(family)
        codes = [rank.wait(120) for rank in ranks]
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive, "writers outlived their ranks"
        return codes


def learned(run: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["tokens"], line["train/loss"], line["train/grad_norm"]) for line in lines]


def kill(family: list[psutil.Process]) -> None:
    for process in family:
        process.kill()


def kill_the_ranks_alone(family: list[psutil.Process]) -> None:
    """As the kernel does it where memory ran out: the writers are left to themselves."""
    for process in family:
        if process.ppid() == os.getpid():
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("background", ["false", "true"], ids=["foreground", "background"])
def test_a_run_killed_at_every_moment_of_a_save_learns_the_same(
    background: str, whole: Path, corpus: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    slow = ["tests/save_jobs.py", *settings(corpus, killed, f"checkpoint.async_save={background}")]
    partial = killed / "iter_0000008.partial"
    for name, seen in MOMENTS.items():
        end = kill_the_ranks_alone if name == "writing" else kill
        assert run_until(slow, lambda seen=seen: seen(partial), end) == [-9, -9], name
        assert [path.name for path in whole_checkpoints(killed)] == ["iter_0000004"], name
        assert partial.exists(), name

    def terminate(family: list[psutil.Process]) -> None:
        """As Slurm does it: every process of the job."""
        for process in family:
            process.terminate()

    partial = killed / "iter_0000012.partial"
    assert run_until(slow, lambda: MOMENTS["writing"](partial), terminate) == [85, 85]
    newest = whole_checkpoints(killed)[-1]
    assert json.loads((newest / "state.json").read_text())["reason"] == "stop requested" and newest.name > "iter_0000012"
    assert not list(killed.glob("*.partial"))

    with watch_jobs.world(2, ["pretrain_smol.py", *settings(corpus, killed)]) as ranks:
        assert [rank.wait(240) for rank in ranks] == [0, 0]
    assert learned(killed) == learned(whole)
    assert sorted(path.name for path in killed.glob("iter_*")) == ["iter_0000016", "iter_0000018"]


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_writers_too_and_harms_nothing(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["tests/save_jobs.py", *settings(corpus, run, "checkpoint.async_save=true")]
    seen = MOMENTS["writing"]
    codes = run_until(
        command,
        lambda: seen(run / "iter_0000004.partial"),
        lambda family: [process.send_signal(signal.SIGINT) for process in family],
    )
    assert codes == [85, 85]
    assert "iter_0000004" in [path.name for path in whole_checkpoints(run)]
    assert not list(run.glob("*.partial"))
