"""Staging on three virtual nodes, each with a folder of its own: ahead of time, and in a training job that got another node."""

import fcntl
import shutil

import pytest
from slurm_cluster import Cluster, Submitter, wait_until
from staging_parts import StagingSite, contents

SOON = ("common", "one", "two", "held_out/common")


@pytest.fixture
def site(submit: Submitter, monkeypatch: pytest.MonkeyPatch) -> StagingSite:
    site = StagingSite(submit.folder, monkeypatch)
    submit.config = site.config
    submit.settings |= {"DATA_ROOT": str(site.shared), "SMOL_LOCAL_DATA": f"{site.folder}/disk/%N"}
    submit.settings |= {"SMOL_STAGE_NODES": "2", "SMOL_STAGE_SBATCH": "--exclusive"}
    return site


def test_a_node_gets_its_data_from_others_before_its_rank_joins(cluster: Cluster, submit: Submitter, site: StagingSite) -> None:
    expected = {name: contents(site.shared / name) for name in SOON}

    def there(node: str) -> bool:
        return all(contents(site.folder / "disk" / node / name) == expected[name] for name in SOON)

    def stage() -> str:
        job = submit.job("stage")
        assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "COMPLETED", submit.log()
        return (submit.run / "slurm" / "logs" / f"stage-{job}.log").read_text()

    assert f"files from {site.shared}" in stage()
    assert there("n1") and there("n2") and not (site.folder / "disk" / "n3").exists()

    for path in site.shared.rglob("*.ds"):  # the source has nothing left that could be read
        path.unlink()
    submit.settings["SMOL_STAGE_NODES"] = "3"
    log = stage()
    [told] = [line for line in log.splitlines() if "n3: loaded: " in line]
    assert there("n3") and "files from n1, " in told and told.endswith("files from n2"), log

    shutil.rmtree(site.folder / "disk" / "n3")
    first = submit.job("standin", "suspect")  # n1 is suspected, and another job takes over without it
    wait_until(lambda: len(submit.ranks()) == 4, f"the other job does not start: {submit.log()}")
    assert there("n3"), "before its rank began"
    (submit.run / "finish").touch()
    assert cluster.wait_for_state(first, "COMPLETED", "FAILED") == "FAILED"
    wait_until(lambda: not cluster.jobs(), "the other job does not end")
    roots = [line.split() for line in (submit.run / "data_roots").read_text().splitlines()]
    nodes = ["n1", "n2", "n2", "n3"]
    assert sorted(roots) == [[node, f"{site.folder}/disk/{node}", str(site.shared)] for node in nodes]


@pytest.mark.slow
def test_a_training_job_ends_with_its_staging(cluster: Cluster, submit: Submitter, site: StagingSite) -> None:
    (site.shared / "one" / "0.ds").unlink()
    (site.folder / "disk" / "n1").mkdir(parents=True)
    with (site.folder / "disk" / "n1" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another job that loads the node
        job = submit.job("standin", "work")
        submit.wait_for_log("n1: another job loads ")
        cluster.run("scancel", "--batch", "--signal=USR1", job)
        submit.wait_for_log("the ranks ended with 85 (time limit)", "back in the queue")
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED") == "FAILED"
    assert cluster.field(job, "ExitCode") == "93:0", "data that is not there: it is not started again"
    assert f"n1: error: {site.shared}/one/0.ds cannot be read (No such file" in submit.log() and not submit.ranks()
