"""The real trainer on a real Slurm, two nodes and a spare: whatever happens to it, it ends as if nothing had been.

One run, to which everything is done in turn with slurm/faults.sh; `python -m benchmarks.recovery` makes its table of times.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
from ranks import Ranks
from s3_double import S3Double, s3_double
from slurm_cluster import Cluster, Submitter, fake_program, wait_until
from tiny_runs import tiny_overrides

from conversion.upload import s5cmd
from slurm.history import read_history
from slurm.incidents import incidents
from smol_train.checkpoint_folder import note_of, read_state, step_of, whole_checkpoints

pytestmark = pytest.mark.slow

STEPS = 320
BETWEEN = 30
"""Steps from a start to the next fault: more than one save."""


@pytest.fixture
def s3() -> Iterator[S3Double]:
    with s3_double() as double:
        yield double


def settings(corpus: Path, run: Path) -> list[str]:
    return [
        *tiny_overrides(corpus, run),
        f"data.stages.0.steps={STEPS - 40}",
        "data.stages.1.steps=40",
        "optim.schedule.decay_steps=40",
        "checkpoint.every_steps=24",
        "checkpoint.keep_last=3",
        "checkpoint.async_save=true",
        "watchdog.minutes=0.25",
        "watchdog.pause_minutes=0.5",
        "spikes.sigma=50",  # the norms of so small a run jump
    ]


class Story:
    """A run to which things happen."""

    def __init__(self, cluster: Cluster, submit: Submitter) -> None:
        self.cluster, self.submit, self.run = cluster, submit, submit.run
        self.job = submit.job("pretrain")

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.run / name
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def starts(self) -> list[dict[str, Any]]:
        return [line for line in self.lines("slurm/starts.jsonl") if line["event"] == "start" and line["chain"] == self.chain]

    @property
    def chain(self) -> str:
        return str(self.lines("slurm/starts.jsonl")[0]["chain"])

    def train(self) -> int:
        """Until it is some steps further than its newest checkpoint; that checkpoint's step."""
        begun = len(self.starts())
        before = self.newest()
        self.wait(lambda: self.last_step() >= before + BETWEEN and self.newest() > before, f"{BETWEEN} steps after {before}")
        assert len(self.starts()) == max(begun, 1), self.submit.log()
        return self.newest()

    def fault(self, *arguments: str) -> None:
        outcome = self.cluster.run(
            "bash", self.cluster.repository / "slurm" / "faults.sh", arguments[0], self.run, *arguments[1:]
        )
        assert outcome.code == 0, outcome

    def wait_for_start(self, number: int) -> None:
        self.wait(lambda: len(self.starts()) >= number, f"start {number}")

    def wait(self, condition: Any, what: str) -> None:
        try:
            wait_until(condition, what)
        except AssertionError:
            pytest.fail(f"{what} does not come\n{self.submit.log()}")

    def newest(self) -> int:
        return max(map(step_of, whole_checkpoints(self.run)), default=0)

    def last_step(self) -> int:
        return max((line["step"] for line in self.lines("metrics.jsonl")), default=0)


def test_a_run_survives_everything_and_sees_the_same_samples(
    cluster: Cluster,
    preflight: Submitter,
    corpus: Path,
    tmp_path: Path,
    ranks: Ranks,
    s3: S3Double,
) -> None:
    preflight.environment = s3.environment
    assert cluster.run(s5cmd.find_program(), "mb", "s3://bucket", **preflight.environment).code == 0
    s3.faults = {"/runs/": [503] * 100_000}  # to everything that is written there
    bad = tmp_path / "bad_node"
    fake_program(tmp_path, "dcgmi", f'[[ $SLURMD_NODENAME != "$(cat {bad})" ]] || exit 226')
    bad.write_text("none\n")
    # A lost node is declared down 25 to 30 seconds later here: the ranks wait longer, so that it is Slurm that ends the job.
    # Were it back in the queue in that very second, a slurmd that goes by seconds would refuse it (22.05: "already killed").
    preflight.settings |= {"SMOL_NODES": "2", "SMOL_SRUN": "--wait=40"}
    preflight.overrides = [*settings(Path("${DATA_ROOT}"), preflight.run), "checkpoint.upload=s3://bucket/runs"]
    story = Story(cluster, preflight)
    uploads = preflight.job("upload", "--every", "1")

    story.train()
    story.fault("kill-rank")
    story.wait_for_start(2)

    story.train()
    story.fault("hang-rank")
    story.wait_for_start(3)

    story.train()
    # As Slurm does before the time limit, whose minutes are too coarse here (test_slurm_requeue has real ones).
    assert cluster.run("scancel", "--batch", "--signal=USR1", story.job).code == 0
    story.wait_for_start(4)
    saved = read_state(whole_checkpoints(story.run)[-1])
    assert saved.reason == "stop requested", "saved when it was asked, not only when it was due"
    assert len(whole_checkpoints(story.run)) > 3, "with S3 down, none is removed"
    s3.faults.clear()

    damaged = story.train()
    story.wait(lambda: note_of(whole_checkpoints(story.run)[-1]), "the upload")
    story.fault("corrupt-latest")
    story.fault("kill-rank")
    story.wait_for_start(5)

    story.wait(lambda: story.last_step() > damaged, "the step of the damaged checkpoint")
    story.train()
    story.fault("kill-node", "n2")
    story.wait_for_start(6)
    cluster.lab("node-start", "n2")

    story.train()
    bad.write_text("n1\n")
    story.fault("kill-rank")
    story.wait_for_start(8)
    last_job = story.starts()[-1]["job"]
    assert cluster.wait_for_state(last_job, "COMPLETED", "FAILED") == "COMPLETED", preflight.log()
    assert cluster.wait_for_state(uploads, "COMPLETED", "FAILED") == "COMPLETED", preflight.log()

    nodes = [line["nodes"] for line in story.starts()]
    assert nodes[:6] == [["n1", "n2"]] * 5 + [["n1", "n3"]], "the spare took the lost node's place"
    assert "n1" in nodes[6] and nodes[7:] == [["n2", "n3"]], "the mended node, or the spare, that of the bad one"
    assert [one.what for one in incidents(read_history(story.run))] == [
        "crash (kill-rank)",
        "hang (hang-rank)",
        "time limit",
        "crash, damaged checkpoint (corrupt-latest, kill-rank)",
        "lost node n2 (kill-node)",
        "crash (kill-rank)",
        "bad node",
    ]
    for node in ("n1", "n2", "n3"):
        assert (tmp_path / "disk" / node / "tokens" / "code" / "manifest.json").is_file(), "each read its own copy of the data"
    for checkpoint in whole_checkpoints(story.run):
        assert note_of(checkpoint), "everything has arrived in the end"

    [reference, _] = ranks.run(jobs.train, 2, overrides=settings(corpus, tmp_path / "undisturbed"))
    disturbed = story.lines("metrics.jsonl")
    assert [line["step"] for line in disturbed] == list(range(1, STEPS + 1))
    assert [line["train/loss"] for line in disturbed] == reference["loss"], "bit for bit"


def test_a_run_goes_on_where_a_cluster_has_none_of_it(cluster: Cluster, submit: Submitter, corpus: Path) -> None:
    """No S3, no local disks, no preflight, no reservation, no spare, and no right to requeue."""
    submit.settings |= {"SMOL_NODES": "3", "SMOL_REQUEUE": "chain", "SMOL_SRUN": "--wait=20"}
    assert not {"SMOL_RESERVATION", "SMOL_PREFLIGHT", "SMOL_LOCAL_DATA", "SMOL_DATA_SOURCE"} & submit.settings.keys()
    submit.overrides = [*settings(corpus, submit.run), "train.global_batch_size=6"]
    story = Story(cluster, submit)
    story.train()
    story.fault("kill-rank")
    story.wait_for_start(2)
    story.train()
    assert cluster.run("scancel", "--batch", "--signal=USR1", story.starts()[-1]["job"]).code == 0
    story.wait_for_start(3)
    jobs_of_chain = [line["job"] for line in story.starts()]
    assert cluster.wait_for_state(jobs_of_chain[-1], "COMPLETED", "FAILED") == "COMPLETED", submit.log()
    assert len(set(jobs_of_chain)) == 3, "each start is a job of its own"
    assert [line["step"] for line in story.lines("metrics.jsonl")] == list(range(1, STEPS + 1))
    assert len(whole_checkpoints(story.run)) == 3 and not (story.run / "uploads").exists(), "checkpoint.keep_last"
