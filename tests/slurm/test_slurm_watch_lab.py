"""The watcher on a real Slurm: what Slurm does not see is started again; a controller that is away harms nothing."""

import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from slurm_cluster import Cluster, Submitter, wait_until

from slurm.scheduler import Slurm, submissions
from slurm.watch import Watcher
from smol_train.callbacks.alerts import Alerts
from smol_train.sections.watch import AlertsConfig


@pytest.fixture
def here(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The watcher of this process asks the lab."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment[name])
    return cluster


@pytest.fixture
def patient(here: Cluster) -> Iterator[None]:
    """A job that is ended has 20 seconds to save, where the lab's others have 5: this machine may be busy."""
    with here.setting("KillWait=20"):
        yield


def watcher(submit: Submitter) -> Watcher:
    return Watcher(submit.run, Slurm(), Alerts(AlertsConfig(), submit.run, is_main=True))


def heartbeat(submit: Submitter) -> None:
    """Of a step that begins now; the stand-in never ends it."""
    submit.run.joinpath("heartbeat").mkdir(exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    submit.run.joinpath("heartbeat", "rank_0.json").write_text(f'{{"step": 5, "phase": "step", "time": "{now}"}}\n')


def wait_for_ranks(submit: Submitter, count: int) -> None:
    wait_until(lambda: len(submit.ranks()) >= count, f"{count} ranks do not start: {submit.log()}")
    wait_until(lambda: submit.log().count("saved step") >= count // 2, "the ranks do not save")


def logbook(submit: Submitter) -> str:
    return (submit.run / "slurm" / "logbook.md").read_text()


def test_what_slurm_does_not_see_is_started_again_by_the_watcher(here: Cluster, patient: None, submit: Submitter) -> None:
    job = submit.job("standin", "work")
    wait_for_ranks(submit, 2)
    heartbeat(submit)
    [one] = submissions(submit.run)
    assert (one.job, one.trains, one.gpus_per_node) == ("standin", True, 0)

    [rank] = [psutil.Process(int(process)) for _, node, process, _ in submit.ranks() if node == "n2"]
    steps = [parent for parent in rank.parents() if parent.name().startswith("slurmstepd")]
    for process in (*steps, rank):  # the daemon first: nobody is left to tell of the rank's end
        process.kill()
    watch = watcher(submit)
    watch.look(time.time())
    assert here.state(job) == "RUNNING" and "silent" not in logbook(submit)

    watch.look(time.time() + 36 * 60)  # 30 minutes of the trainer's watchdog, and 5 more
    assert "is put back into the queue" in (submit.run / "alerts.jsonl").read_text()
    wait_for_ranks(submit, 4)
    watcher(submit).look(time.time())
    (submit.run / "finish").touch()
    assert here.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", submit.log()
    text = logbook(submit)
    assert text.count("**silent** job ") == 1 and text.count("**start** job ") == 2 and "from step 10\n" in text, (
        "the rank that was left saved when the job was ended"
    )


@pytest.mark.slow
def test_a_controller_that_is_away_for_a_while_ends_nothing(here: Cluster, submit: Submitter) -> None:
    job = submit.job("standin", "work")
    wait_for_ranks(submit, 2)
    watch = watcher(submit)
    watch.look(time.time())
    controller = here.folder / "pid" / "slurmctld.pid"
    process = psutil.Process(int(controller.read_text()))
    os.kill(process.pid, signal.SIGTERM)
    process.wait(30)
    try:
        assert Slurm().jobs() is None
        watch.look(time.time())
    finally:
        assert here.run("slurmctld", "-f", here.folder / "slurm.conf").code == 0
    jobs = wait_until(Slurm().jobs, "the controller does not come back")
    assert [(one.id, one.state, one.nodes) for one in jobs] == [(job, "RUNNING", "n[1-2]")]
    watch.look(time.time())
    (submit.run / "finish").touch()
    assert here.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", submit.log()
    assert "chain" not in logbook(submit) and logbook(submit).count("is RUNNING") == 1


def test_how_a_job_ended_is_known_without_a_database(here: Cluster, submit: Submitter) -> None:
    job = submit.job("standin", "refuse")
    here.wait_for_state(job, "FAILED")
    wait_until(lambda: Slurm().last_state(job) == "FAILED", "the record of the job does not come")
    assert Slurm().last_state("4000000") is None


def test_the_watcher_is_a_job_of_its_own(here: Cluster, submit: Submitter) -> None:
    training = submit.job("standin", "work")
    wait_for_ranks(submit, 2)
    watching = submit.job("watch")
    wait_until(lambda: (submit.run / "slurm" / "logbook.md").exists(), submit.log())
    here.run("scancel", training)
    here.wait_for_state(training, "CANCELLED")
    assert here.state(watching) == "RUNNING"
    with (submit.run / "alerts.jsonl").open("a") as file:
        file.write('{"time": "2027-01-15T08:00:00+00:00", "event": "done", "text": "all steps"}\n')
    assert here.wait_for_state(watching, "COMPLETED", "FAILED") == "COMPLETED", submit.log()
    assert "**done** all steps\n" in logbook(submit)


def test_where_slurm_is_not_installed_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Slurm().jobs() is None and Slurm().last_state("7") is None
    assert Slurm().requeue("7") == "scontrol does not answer"
