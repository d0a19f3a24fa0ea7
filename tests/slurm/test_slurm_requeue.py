"""What becomes of a job: ends, crashes, signals, lost nodes. Ranks are stand-ins (standin_rank.sh), Slurm is real."""

import json
import os
import signal

from slurm_cluster import Cluster, Submitter, wait_until


def starts(submit: Submitter) -> list[dict[str, object]]:
    return [json.loads(line) for line in (submit.run / "slurm" / "starts.jsonl").read_text().splitlines()]


def test_a_job_that_ends_is_done(cluster: Cluster, submit: Submitter) -> None:
    job = submit.job("standin", "work")
    wait_until(lambda: len(submit.ranks()) == 2, "ranks do not start")
    (submit.run / "finish").touch()
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", submit.log()
    assert {node for _, node, *_ in submit.ranks()} == {"n1", "n2"}
    [start, end] = starts(submit)
    assert (start["event"], start["job"], start["nodes"], start["checkpoint"]) == ("start", job, ["n1", "n2"], -1)
    assert (end["event"], end["code"], end["reason"], end["next"], end["checkpoint"]) == ("end", 0, "done", "done", 5)


def test_a_killed_rank_is_started_again(cluster: Cluster, submit: Submitter) -> None:
    job = submit.job("standin", "work")
    wait_until(lambda: len(submit.ranks()) == 2, "ranks do not start")
    submit.wait_for_log("saved step 5")
    os.kill(int(submit.ranks()[1][2]), signal.SIGKILL)
    wait_until(lambda: len(submit.ranks()) == 4, "ranks are not started again")
    (submit.run / "finish").touch()
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", submit.log()
    assert [line.get("reason") for line in starts(submit)] == [None, "crash", None, "done"]
    assert "goes on from step 5" in submit.log()
