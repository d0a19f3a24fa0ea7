"""Preflight as a job on three virtual nodes: checks under srun, all-reduces of real ranks over gloo, one line at the end."""

import json
from pathlib import Path

from slurm_cluster import Cluster, Submitter, fake_program, wait_until


def results(submit: Submitter, name: str) -> list[dict[str, str]]:
    [path] = (submit.run / "slurm" / "preflight").glob(f"*/{name}.json")
    found: list[dict[str, str]] = json.loads(path.read_text())["results"]
    return found


def test_a_node_whose_dcgmi_fails_is_named(cluster: Cluster, preflight: Submitter, tmp_path: Path) -> None:
    fake_program(tmp_path, "dcgmi", 'if [[ $SLURMD_NODENAME == n2 ]]; then echo "| Memory | Fail - GPU 3 |"; exit 226; fi')
    job = preflight.job("preflight")
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "FAILED"
    assert cluster.field(job, "ExitCode") == "93:0", "it is not started again"
    log = preflight.log()
    assert "preflight: bad n2\n" in log
    assert "bad: dcgm, n2: dcgmi diag -r 1: Memory Fail - GPU 3" in log
    told = {one["check"]: one["verdict"] for one in results(preflight, "n1")}
    assert told["dcgm"] == told["data"] == told["layout"] == told["scratch"] == "ok" and told["gemm"] == "skipped"
    assert "all-reduce" not in log, "ranks would hang on a sick node"


def test_a_training_job_leaves_a_bad_node_out_and_the_spare_takes_its_place(
    cluster: Cluster, preflight: Submitter, tmp_path: Path
) -> None:
    fake_program(tmp_path, "dcgmi", "[[ $SLURMD_NODENAME != n1 ]] || exit 226")
    preflight.settings["SMOL_NODES"] = "2"
    preflight.overrides[-1] = "train.global_batch_size=8"
    first = preflight.job("standin", "work")
    wait_until(lambda: len(preflight.ranks()) == 2, "the ranks do not start")
    (preflight.run / "finish").touch()
    assert cluster.wait_for_state(first, "COMPLETED", "FAILED") == "FAILED", "another job has taken over"
    wait_until(lambda: not cluster.jobs(), "the other job does not end")
    starts = [json.loads(line) for line in (preflight.run / "slurm" / "starts.jsonl").read_text().splitlines()]
    assert [line["nodes"] for line in starts if line["event"] == "start"] == [["n1", "n2"], ["n2", "n3"]]
    assert [(line["reason"], line["bad"]) for line in starts if line["event"] == "end"] == [("bad node", ["n1"]), ("done", [])]
    assert sorted(node for _, node, *_ in preflight.ranks()) == ["n2", "n3"], "none began on the bad node"


def test_where_nothing_is_left_for_a_bad_node_the_job_ends(cluster: Cluster, preflight: Submitter, tmp_path: Path) -> None:
    fake_program(tmp_path, "dcgmi", "[[ $SLURMD_NODENAME != n2 ]] || exit 226")
    job = preflight.job("standin", "work")
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "FAILED"
    assert cluster.field(job, "ExitCode") == "93:0"
    assert "without n2 there are not enough nodes; not started again: mend n2, or ask for fewer nodes" in preflight.log()
    assert not preflight.ranks()


def test_a_fault_that_is_no_nodes_stops_a_training_job(cluster: Cluster, preflight: Submitter, tmp_path: Path) -> None:
    preflight.overrides.append(f"data.datasets.docs={tmp_path / 'nowhere'}")
    job = preflight.job("standin", "work")
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "FAILED"
    assert cluster.field(job, "ExitCode") == "93:0"
    assert "preflight: stop\n" in preflight.log() and not preflight.ranks()


def test_healthy_nodes_are_measured_together(cluster: Cluster, preflight: Submitter) -> None:
    job = preflight.job("preflight")
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", preflight.log()
    log = preflight.log()
    assert "preflight: ok\n" in log
    for line in ("all-reduce in pairs", "all-reduce over all", "dcgm"):
        assert line in log
    [path] = (preflight.run / "slurm" / "preflight").glob("*/network.json")
    told = json.loads(path.read_text())
    for node in ("n1", "n2", "n3"):
        found = {one["check"]: one for one in told[node]}
        assert found["all-reduce in pairs"]["value"].endswith("GB/s (best partner)")
        assert found["all-reduce over all"]["verdict"] == "ok"
        assert found["transport"]["verdict"] == found["all-reduce in node"]["verdict"] == "skipped"
    assert not list((preflight.folder / "disk").glob("*/.speed*")), "what was written for the test is removed"


def test_without_limits_the_job_is_refused(preflight: Submitter) -> None:
    preflight.settings["SMOL_PREFLIGHT"] = ""
    outcome = preflight("preflight", "configs/quickstart.yaml", *preflight.overrides)
    assert (outcome.code, outcome.out) == (2, "")
    assert "SMOL_PREFLIGHT is empty; name a file of configs/preflight in slurm/env.sh" in outcome.err
