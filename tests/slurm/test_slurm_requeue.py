"""What becomes of a job: ends, crashes, signals, suspected nodes. Ranks are stand-ins (standin_rank.sh), Slurm is real."""

import getpass
import json
import os
import signal
import socket
from typing import Any

import pytest
from slurm_cluster import Cluster, Submitter, wait_until
from tiny_runs import QUICKSTART


def told(submit: Submitter, event: str, name: str) -> list[Any]:
    """A field of all lines of an event in starts.jsonl."""
    lines = [json.loads(line) for line in (submit.run / "slurm" / "starts.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if line["event"] == event]


def wait_for_ranks(submit: Submitter, count: int) -> None:
    """So many ranks have begun since the run began, and the main one has saved."""
    wait_until(lambda: len(submit.ranks()) >= count, f"{count} ranks do not start: {submit.log()}")
    wait_until(lambda: submit.log().count("saved step") >= count // 2, "the ranks do not save")


def finish(cluster: Cluster, submit: Submitter, job: str) -> None:
    (submit.run / "finish").touch()
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", submit.log()


def test_a_job_that_ends_is_done(cluster: Cluster, submit: Submitter) -> None:
    job = submit.job("standin", "work")
    wait_for_ranks(submit, 2)
    finish(cluster, submit, job)
    assert [node for _, node, *_ in sorted(submit.ranks())] == ["n1", "n2"]
    assert told(submit, "start", "nodes") == [["n1", "n2"]] and told(submit, "start", "checkpoint") == [-1]
    assert (told(submit, "end", "reason"), told(submit, "end", "next")) == (["done"], ["done"])
    assert not any((submit.run / "slurm" / "ends").iterdir())


def test_ranks_meet_at_a_port_that_nobody_has(cluster: Cluster, submit: Submitter) -> None:
    submit.settings["SMOL_SBATCH"] += " --hold"
    job = submit.job("standin", "work")
    port = 20000 + int(job) % 10000
    with socket.create_server(("127.0.0.1", port)):
        cluster.run("scontrol", "release", job)
        wait_for_ranks(submit, 2)
    finish(cluster, submit, job)
    [environment] = (submit.run / "slurm" / "logs").glob("*.env")
    assert f"\nMASTER_PORT={port + 1}\n" in environment.read_text()


def test_a_killed_rank_is_started_again(cluster: Cluster, submit: Submitter) -> None:
    job = submit.job("standin", "work")
    wait_for_ranks(submit, 2)
    os.kill(int(submit.ranks()[1][2]), signal.SIGKILL)
    wait_for_ranks(submit, 4)
    finish(cluster, submit, job)
    assert told(submit, "end", "reason") == ["crash", "done"]
    [first, again] = told(submit, "start", "checkpoint")
    assert first == -1 and f"goes on from step {again}\n" in submit.log()


def test_slurms_signal_before_the_time_limit_saves_and_starts_again(cluster: Cluster, submit: Submitter) -> None:
    job = submit.job("standin", "work")
    wait_for_ranks(submit, 2)
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@SECONDS sends
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    wait_for_ranks(submit, 4)
    finish(cluster, submit, job)
    assert told(submit, "end", "reason") == ["time limit", "done"]
    assert told(submit, "start", "checkpoint") == [-1, 10], "saved when it was asked"
    assert submit.log().count("asked to save") == 1, "a second request would kill the ranks in their save"


@pytest.mark.slow
def test_the_own_timer_saves_where_slurms_signal_is_off(cluster: Cluster, submit: Submitter) -> None:
    submit.settings |= {"SMOL_TIME": "1", "SMOL_SAVE_SECONDS": "40", "SMOL_SBATCH": "--exclusive --signal=B:URG@1"}
    job = submit.job("standin", "work")
    wait_for_ranks(submit, 4)
    finish(cluster, submit, job)
    assert told(submit, "end", "reason") == ["time limit", "done"]
    assert told(submit, "start", "checkpoint") == [-1, 10]


@pytest.mark.slow
def test_ranks_that_do_not_end_in_time_are_killed_and_started_again(cluster: Cluster, submit: Submitter) -> None:
    submit.settings |= {"SMOL_TIME": "1", "SMOL_SAVE_SECONDS": "50"}
    job = submit.job("standin", "stubborn")
    wait_for_ranks(submit, 4)
    finish(cluster, submit, job)
    assert told(submit, "end", "reason") == ["time limit", "done"]
    assert "the ranks have not ended; they are killed" in submit.log()


def test_a_stop_file_ends_the_job_for_good(cluster: Cluster, submit: Submitter) -> None:
    job = submit.job("standin", "work")
    wait_for_ranks(submit, 2)
    (submit.run / "stop").touch()
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "FAILED"
    assert cluster.field(job, "ExitCode") == "93:0"
    assert (told(submit, "end", "reason"), told(submit, "end", "next")) == (["stopped"], ["stop"])


def test_one_rank_that_refuses_is_heard_among_others_that_crash(cluster: Cluster, submit: Submitter) -> None:
    job = submit.job("standin", "refuse")
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "FAILED"
    assert cluster.field(job, "ExitCode") == "93:0"
    assert "the ranks ended with 93: not to be started again" in submit.log()


@pytest.mark.slow
def test_a_run_that_brings_nothing_ends_after_two_restarts(cluster: Cluster, submit: Submitter) -> None:
    job = submit.job("standin", "crash")
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "FAILED"
    assert cluster.field(job, "ExitCode") == "93:0"
    assert told(submit, "end", "next") == ["again", "again", "stop"]
    assert "its last 3 starts brought no checkpoint (crash, crash, crash); mend what the log shows" in submit.log()
    # A new submission counts from the beginning.
    (submit.run / "finish").touch()
    assert cluster.wait_for_state(submit.job("standin", "work"), "COMPLETED", "FAILED") == "COMPLETED", submit.log()


def test_a_chain_goes_on_with_its_successor(cluster: Cluster, submit: Submitter) -> None:
    submit.settings["SMOL_REQUEUE"] = "chain"
    first = submit.job("standin", "work")
    wait_for_ranks(submit, 2)
    [second] = [job for job in cluster.jobs() if job != first]
    assert cluster.state(second) == "PENDING"
    cluster.run("scancel", "--batch", "--signal=USR1", first)
    wait_for_ranks(submit, 4)
    assert cluster.state(first) == "FAILED", "its exit code is 85"
    [third] = [job for job in cluster.jobs() if job != second]
    finish(cluster, submit, second)
    assert cluster.wait_for_state(third, "CANCELLED", "RUNNING") == "CANCELLED"
    assert told(submit, "start", "job") == [first, second]
    assert told(submit, "start", "checkpoint") == [-1, 10]


@pytest.mark.slow
def test_the_node_on_which_the_script_itself_runs_may_be_lost(cluster: Cluster, submit: Submitter) -> None:
    job = submit.job("standin", "work")
    wait_for_ranks(submit, 2)
    cluster.lab("node-kill", "n1")
    wait_for_ranks(submit, 4)
    finish(cluster, submit, job)
    assert told(submit, "start", "nodes") == [["n1", "n2"], ["n2", "n3"]]
    assert told(submit, "end", "reason") == ["done"], "nobody was left to tell of the first end"
    assert "start 2 of chain" in submit.log()


@pytest.mark.slow
def test_a_chain_goes_on_after_a_lost_node(cluster: Cluster, submit: Submitter) -> None:
    submit.settings["SMOL_REQUEUE"] = "chain"
    first = submit.job("standin", "work")
    wait_for_ranks(submit, 2)
    [second] = [job for job in cluster.jobs() if job != first]
    cluster.lab("node-kill", "n2")
    wait_for_ranks(submit, 4)
    finish(cluster, submit, second)
    assert cluster.state(first) in ("NODE_FAIL", "FAILED")
    assert told(submit, "start", "nodes") == [["n1", "n2"], ["n1", "n3"]]


@pytest.mark.slow
def test_the_spare_of_a_reservation_evaluates_until_it_is_needed(cluster: Cluster, submit: Submitter) -> None:
    reservation = ["ReservationName=held", "StartTime=now", "Duration=60", "Nodes=n[1-3]", f"Users={getpass.getuser()}"]
    assert cluster.run("scontrol", "create", "reservation", *reservation).code == 0
    try:
        submit.settings["SMOL_RESERVATION"] = "held"
        job = submit.job("standin", "work")
        wait_for_ranks(submit, 2)
        options = ["--partition=idle", "--reservation=held", "--exclusive", "--requeue", "--output=/dev/null"]
        evaluation = cluster.run("sbatch", "--parsable", *options, "--wrap=sleep 500").out.strip()
        cluster.wait_for_state(evaluation, "RUNNING")
        assert cluster.field(evaluation, "NodeList") == "n3"
        cluster.lab("node-kill", "n2")
        wait_for_ranks(submit, 4)
        assert told(submit, "start", "nodes") == [["n1", "n2"], ["n1", "n3"]]
        assert cluster.state(evaluation) == "PENDING", "it gave way, and waits for a node"
        cluster.lab("node-start", "n2")
        cluster.wait_for_state(evaluation, "RUNNING")
        assert cluster.field(evaluation, "NodeList") == "n2", "mended, it is the spare"
        finish(cluster, submit, job)
        cluster.run("scancel", evaluation)
        wait_until(lambda: not cluster.jobs(), "jobs do not end")
    finally:
        cluster.run("scancel", f"--user={os.getuid()}")
        wait_until(lambda: cluster.run("scontrol", "delete", "ReservationName=held").code == 0, "the reservation stays")


@pytest.mark.slow
def test_a_job_preempted_without_grace_goes_on_from_its_last_checkpoint(cluster: Cluster, submit: Submitter) -> None:
    submit.settings |= {"SMOL_NODES": "3", "SMOL_SBATCH": "--exclusive --partition=idle"}
    submit.overrides += ["train.global_batch_size=6"]
    job = submit.job("standin", "deaf")
    wait_for_ranks(submit, 3)
    cluster.run("sbatch", "--partition=train", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_until(lambda: len(submit.ranks()) == 6, "the job does not come back")
    finish(cluster, submit, job)
    assert told(submit, "start", "checkpoint") == [-1, 5], "what was saved before"


def test_a_suspected_node_is_left_out(cluster: Cluster, submit: Submitter) -> None:
    first = submit.job("standin", "suspect")
    submit.wait_for_log("takes over, without n1")
    wait_until(lambda: len(submit.ranks()) == 4, "the new job does not start")
    [second] = cluster.jobs()
    finish(cluster, submit, second)
    assert cluster.state(first) == "FAILED" and first != second
    assert told(submit, "start", "nodes") == [["n1", "n2"], ["n2", "n3"]]
    assert told(submit, "end", "exclude") == [["n1"], []]


def test_where_too_few_nodes_are_left_a_suspected_one_is_used_again(cluster: Cluster, submit: Submitter) -> None:
    submit.settings["SMOL_NODES"] = "3"
    submit.overrides += ["train.global_batch_size=6"]
    job = submit.job("standin", "suspect")
    submit.wait_for_log("without n1 there are not enough nodes; it is started again on any", "back in the queue")
    wait_until(lambda: len(submit.ranks()) >= 6, "it is not started again")
    assert told(submit, "start", "nodes")[:2] == 2 * [["n1", "n2", "n3"]] and cluster.jobs() == [job]
    cluster.run("scancel", job)


def test_a_job_beside_the_run_that_ends_in_peace_when_asked_to_goes_on_later(cluster: Cluster, submit: Submitter) -> None:
    service = "trap 'exit 0' USR1 TERM; echo at work; while [[ ! -e $SMOL_RUN/finish ]]; do sleep 0.2; done"
    (cluster.repository / "slurm" / "jobs" / "service.sh").write_text(f'one_cpu_node\njob_command=(bash -c "{service}")\n')
    submit.settings["SMOL_CPU_CORES"] = "1"
    job = submit.job("service")
    submit.wait_for_log("at work")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: submit.log().count("0: at work") == 2, "it does not go on")
    finish(cluster, submit, job)
    assert told(submit, "end", "reason") == ["time limit", "done"] and told(submit, "end", "code") == [85, 0]


def test_a_cancelled_job_stays_away(cluster: Cluster, submit: Submitter) -> None:
    job = submit.job("standin", "work")
    wait_for_ranks(submit, 2)
    cluster.run("scancel", job)
    assert cluster.wait_for_state(job, "CANCELLED", "COMPLETED", "FAILED", "PENDING") == "CANCELLED"
    assert told(submit, "end", "next") in ([], ["leave"])
    assert len(submit.ranks()) == 2


@pytest.mark.slow
def test_a_preempted_job_saves_and_comes_back(cluster: Cluster, submit: Submitter) -> None:
    submit.settings["SMOL_NODES"] = "3"
    submit.overrides += ["train.global_batch_size=6"]
    job = submit.job("standin", "work")
    wait_for_ranks(submit, 3)
    urgent = ["--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    assert cluster.run("sbatch", *urgent).code == 0
    wait_for_ranks(submit, 6)
    finish(cluster, submit, job)
    assert told(submit, "end", "reason") == ["preempted", "done"]
    assert told(submit, "start", "checkpoint") == [-1, 10], "saved in the time of grace"


def test_a_time_limit_that_leaves_no_time_to_train_is_refused(cluster: Cluster, submit: Submitter) -> None:
    submit.settings |= {"SMOL_TIME": "1", "SMOL_SAVE_SECONDS": "90"}
    job = submit.job("standin", "work")
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "FAILED"
    assert "SMOL_TIME=1 is not longer than SMOL_SAVE_SECONDS=90" in submit.log()


def test_the_job_runs_the_code_and_settings_of_its_submission(
    cluster: Cluster, submit: Submitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.run("scontrol", "update", "nodename=n1,n2,n3", "state=drain", "reason=test")
    try:
        outcome = submit("standin", str(QUICKSTART), *submit.overrides, "train.seed=7", "--", "work", MY_TOKEN="secret")
        assert outcome.code == 0, outcome
        (submit.folder / "env.sh").write_text("broken")
        [code] = (submit.run / "slurm" / "code").iterdir()
        assert "seed: 7" in (code / "submission" / "config.yaml").read_text()
        assert not (code / ".venv").exists() and (code / "smol_train" / "trainer.py").exists()
    finally:
        cluster.run("scontrol", "update", "nodename=n1,n2,n3", "state=resume")
    wait_for_ranks(submit, 2)
    [environment] = (submit.run / "slurm" / "logs").glob("*.env")
    assert f"PYTHONPATH={code}\n" in environment.read_text() and "secret" not in environment.read_text()
    finish(cluster, submit, cluster.jobs()[0])
