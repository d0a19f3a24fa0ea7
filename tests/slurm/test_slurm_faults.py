"""Faults on purpose (slurm/faults.sh): each does what it says, to what it names and to nothing else, and is noted.

What the ranks do is a stand-in's; Slurm, files and signals are real. That runs outlive such faults: test_slurm_requeue.py,
test_recovery.py.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import Cluster, Outcome, Submitter, fake_program, wait_until
from tiny_runs import REPOSITORY

FAULTS = REPOSITORY / "slurm" / "faults.sh"
Command = Callable[..., Outcome]


def noted(run: Path) -> list[tuple[str, str]]:
    """(fault, target) of every line; their times are of now."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "slurm" / "faults.jsonl").read_text().splitlines()]
    assert all(0 <= (datetime.now(UTC) - datetime.fromisoformat(line["time"])).total_seconds() < 3600 for line in lines)
    return [(line["fault"], line["target"]) for line in lines]


def state(process: int) -> str:
    """As ps shows it: T is stopped, empty is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


# --- on the lab cluster ----------------------------------------------------------------------------------------------------


@pytest.fixture
def lab_faults(cluster: Cluster) -> Command:
    """faults.sh, where the lab's nodes run."""
    return lambda *words, **environment: cluster.run("bash", cluster.repository / "slurm" / "faults.sh", *words, **environment)


@pytest.fixture
def real_cluster(cluster: Cluster, tmp_path: Path) -> dict[str, str]:
    """An environment in which the lab looks like any other cluster."""
    conf = tmp_path / "slurm.conf"
    conf.write_text((cluster.folder / "slurm.conf").read_text())
    return {"SLURM_CONF": str(conf)}


def start(submit: Submitter, job: str = "standin", *options: str) -> list[int]:
    """A job that runs; returns the process of each rank."""
    submit.job(job, *options)
    wait_until(lambda: len(submit.ranks()) == 2, f"the ranks do not start: {submit.log()}")
    return [int(process) for _, _, process, _ in sorted(submit.ranks())]


def test_a_rank_is_slowed_down_then_hung_then_killed(cluster: Cluster, submit: Submitter, lab_faults: Command) -> None:
    main, other = start(submit, "standin", "work")
    [job] = cluster.jobs()
    command = ["bash", str(FAULTS), "slow-rank", str(submit.run), "0", "3"]
    with subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, text=True) as slow:
        seen = set()
        while slow.poll() is None:
            seen.add(state(main) == "T")
            time.sleep(0.02)
        said = slow.stdout.read() if slow.stdout else ""
    assert seen == {True, False} and state(main) == "S", "stopped at times, and in the end it goes on"
    assert slow.returncode == 0 and said == f"slow-rank: rank 0 on n1, process {main}, for 3 seconds\n"

    outcome = lab_faults("hang-rank", str(submit.run), "0")
    assert outcome.code == 0 and state(main) == "T" and state(other) == "S"
    assert outcome.out == f"hang-rank: rank 0 on n1, process {main}; kill -CONT {main} there lets it go on\n"

    outcome = lab_faults("kill-rank", str(submit.run))
    assert outcome.code == 0 and outcome.out == f"kill-rank: rank 1 on n2, process {other}\n"
    submit.wait_for_log("to be started again (crash)", "back in the queue")
    cluster.run("scancel", job)
    assert noted(submit.run) == [
        ("slow-rank", f"rank 0 on n1, process {main}, for 3 seconds"),
        ("hang-rank", f"rank 0 on n1, process {main}"),
        ("kill-rank", f"rank 1 on n2, process {other}"),
    ]


def test_the_heartbeat_names_the_process_unless_it_is_an_old_one(
    cluster: Cluster, submit: Submitter, lab_faults: Command
) -> None:
    """A wrapper's child is the trainer; a process that is not the job's stays alone."""
    wrapped = "sleep 500 & echo $SLURM_PROCID $SLURMD_NODENAME $! 0 >>$SMOL_RUN/ranks; wait"
    (cluster.repository / "slurm" / "jobs" / "wrapped.sh").write_text(f"job_trains=yes\njob_command=(bash -c '{wrapped}')\n")
    trainers = start(submit, "wrapped")
    stranger = subprocess.Popen(["sleep", "500"])
    beats = submit.run / "heartbeat"
    beats.mkdir()
    for rank, process in ((0, trainers[0]), (1, stranger.pid)):
        (beats / f"rank_{rank}.json").write_text(json.dumps({"rank": rank, "host": f"n{rank + 1}", "pid": process, "step": 5}))
    try:
        assert lab_faults("hang-rank", str(submit.run), "0").code == 0
        assert lab_faults("hang-rank", str(submit.run), "1").code == 0
        assert state(trainers[0]) == "T" and state(trainers[1]) == "S" and state(stranger.pid) == "S"
        wrapper = int(noted(submit.run)[1][1].rpartition(" ")[2])
        assert state(wrapper) == "T", "what rank.sh started"
        outcome = lab_faults("hang-rank", str(submit.run), "2")
        assert outcome.code == 2 and "rank 2 of job" in outcome.err and "has no process on n1,n2" in outcome.err
        assert len(noted(submit.run)) == 2
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.slow  # the node takes its time to come back
def test_a_node_is_lost(cluster: Cluster, submit: Submitter, lab_faults: Command) -> None:
    main, other = start(submit, "standin", "work")
    outcome = lab_faults("kill-node", str(submit.run), "n3")
    assert outcome.code == 2 and "NODE n3 is not of job" in outcome.err and "runs on n1,n2" in outcome.err
    slurmd = int((cluster.folder / "pid" / "slurmd-n2.pid").read_text())
    outcome = lab_faults("kill-node", str(submit.run))
    assert outcome.code == 0 and outcome.out.startswith("kill-node: n2; bash tests/slurm/lab.sh node-start ")
    wait_until(lambda: not state(slurmd).strip("Z") and not state(other).strip("Z"), "node n2 lives")
    assert state(main), "the other node does"
    assert noted(submit.run) == [("kill-node", "n2")]


def test_elsewhere_a_node_is_set_down_and_the_run_goes_on_with_the_spare(
    cluster: Cluster, submit: Submitter, lab_faults: Command, real_cluster: dict[str, str], tmp_path: Path
) -> None:
    start(submit, "standin", "work")
    outcome = lab_faults("kill-node", str(submit.run), "n1", **real_cluster)
    assert outcome.code == 2 and f"kill-node is real on this cluster; give --yes if {submit.run}" in outcome.err

    fake_program(tmp_path, "scontrol", f'[ "$1" != update ] || exit 1\nexec {shutil.which("scontrol")} "$@"')
    path = f"{tmp_path / 'bin'}:{cluster.environment['PATH']}"
    outcome = lab_faults("--yes", "kill-node", str(submit.run), "n1", PATH=path, **real_cluster)
    assert outcome.code == 2 and "Slurm does not set n1 down for you" in outcome.err
    assert not (submit.run / "slurm" / "faults.jsonl").exists()

    try:
        outcome = lab_faults("--yes", "kill-node", str(submit.run), "n1", **real_cluster)
        assert outcome.out == "kill-node: n1; scontrol update nodename=n1 state=resume brings it back\n", outcome
        wait_until(lambda: len(submit.ranks()) == 4, f"the run does not go on: {submit.log()}")
        assert sorted(node for _, node, *_ in submit.ranks()[2:]) == ["n2", "n3"], "its first node was lost"
    finally:
        cluster.run("scontrol", "update", "nodename=n1", "state=resume")


def test_a_run_of_which_nothing_trains_is_told(cluster: Cluster, submit: Submitter, lab_faults: Command) -> None:
    """Its own job that does not train is no target, nor is that of a run with a longer name."""
    helper = cluster.repository / "slurm" / "jobs" / "helper.sh"
    helper.write_text("job_trains=no\none_cpu_node\njob_command=(bash -c 'touch $SMOL_RUN/helps; sleep 100')\n")
    submit.job("helper")
    run, submit.run = submit.run, submit.run.with_name("run-standin-run")
    submit.overrides = [f"train.output_dir={submit.run}"]
    [_, other] = start(submit, "standin", "work")
    wait_until(lambda: (run / "helps").exists(), "the other job does not start")
    outcome = lab_faults("hang-rank", str(run))
    assert outcome.code == 2 and f"no job that trains {run} is running" in outcome.err
    assert lab_faults("hang-rank", str(submit.run)).code == 0 and state(other) == "T"
