"""`evaluation ablate --slurm` on a real Slurm: a job a run; one that is cancelled is submitted again by the same command."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from slurm_cluster import Cluster, Outcome, Submitter, fake_program, wait_until
from tiny_runs import QUICKSTART, tiny_overrides

from smol_config import mapping_to_yaml, merge_files

pytestmark = pytest.mark.slow


def test_a_run_whose_job_is_lost_is_submitted_again_and_the_others_are_not(
    cluster: Cluster, submit: Submitter, corpus: Path, tmp_path: Path
) -> None:
    overrides = tiny_overrides(corpus, tmp_path / "elsewhere")
    (tmp_path / "baseline.yaml").write_text(mapping_to_yaml(merge_files(QUICKSTART, overrides)))
    sweep: dict[str, Any] = {
        "baseline": "baseline.yaml",
        "output": str(tmp_path / "sweep"),
        "seeds": {"baseline": [6], "changes": [6]},
    }
    sweep["changes"] = [{"name": "mqa", "overrides": ["model.num_query_groups=1"]}]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    runs = [tmp_path / "sweep" / "runs" / f"{name}-seed6" for name in ("baseline", "mqa")]
    submit.settings["SMOL_NODES"] = "1"
    submit("--help")  # writes env.sh

    def ablate(**environment: str) -> Outcome:
        command = (sys.executable, "-m", "evaluation", "ablate", tmp_path / "sweep.yaml", "--slurm")
        return cluster.run(*command, SMOL_ENV=str(tmp_path / "env.sh"), **environment)

    def submissions() -> list[int]:
        return [len(list((run / "slurm" / "code").iterdir())) for run in runs]

    fake_program(tmp_path, "squeue", "exit 1")
    silent = ablate(PATH=f"{tmp_path / 'bin'}:{cluster.environment['PATH']}")
    assert silent.code == 2 and "seed 6: squeue does not answer (its message stands above), so that" in silent.err
    assert not list(tmp_path.rglob("slurm/code/*"))
    cluster.run("scontrol", "update", "partitionname=train", "state=down")  # jobs wait
    try:
        assert ablate().code == 1 and submissions() == [1, 1]
        first, second = cluster.jobs()
        again = ablate()
        assert again.code == 1 and submissions() == [1, 1] and cluster.jobs() == [first, second]
        assert f"mqa, seed 6: job {second}: pretrain of {runs[1]} is in the queue already" in again.out
        cluster.run("scancel", second)
        wait_until(lambda: cluster.jobs() == [first], "the job is not cancelled")
        assert ablate().code == 1 and submissions() == [1, 2]
        assert cluster.jobs()[0] == first and second not in cluster.jobs()
    finally:
        cluster.run("scontrol", "update", "partitionname=train", "state=up")
    wait_until(lambda: not cluster.jobs(), "the runs do not end")
    done = ablate()
    assert done.code == 0, (done, [path.read_text() for path in tmp_path.rglob("slurm/logs/*.log")])
    assert submissions() == [1, 2] and "pretrain of" not in done.out
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert [run["state"] for run in results["runs"]] == ["done", "done"]
