"""A real Slurm of three virtual nodes for the session (lab.sh), where it is installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluated_run import Queue
from ports import free_ports
from preflight_parts import CheckedNode
from slurm_cluster import Cluster, Submitter, copy_repository, missing_packages
from tiny_runs import tiny_overrides


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if missing := missing_packages():
        pytest.skip(f"Slurm is not installed: apt-get install {' '.join(missing)} slurm-wlm-basic-plugins")
    folder = tmp_path_factory.mktemp("lab")
    cluster = Cluster(folder, copy_repository(tmp_path_factory.mktemp("copy")))
    cluster.lab("up", "3", LAB_PORT=str(free_ports(5)))
    yield cluster
    cluster.lab("down")


@pytest.fixture
def cluster(lab: Cluster) -> Iterator[Cluster]:
    """All three nodes idle."""
    with lab.idle():
        yield lab


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Submitter:
    return Submitter(cluster, tmp_path)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    return Queue(tmp_path, monkeypatch)


@pytest.fixture
def checked(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> CheckedNode:
    return CheckedNode(tmp_path, corpus, monkeypatch)


LIMITS = """# Of a test.
tools: {dcgm_level: 1}
storage: {megabytes: 16, streams: 2}
network: {megabytes: 1, iterations: 2, all: 0.000001}
"""


@pytest.fixture
def preflight(submit: Submitter, corpus: Path, tmp_path: Path) -> Submitter:
    """Submits to all three nodes, with checks and staging before it; programs in tmp_path/bin come before others."""
    (tmp_path / "limits.yaml").write_text(LIMITS)
    submit.overrides = [*tiny_overrides(Path("${DATA_ROOT}"), submit.run), "train.global_batch_size=6"]
    submit.settings |= {
        "SMOL_NODES": "3",
        "SMOL_PREFLIGHT": str(tmp_path / "limits.yaml"),
        "SMOL_PREFLIGHT_MINUTES": "5",
        "DATA_ROOT": str(corpus),
        "SMOL_LOCAL_DATA": str(tmp_path / "disk" / "%N"),
        "PATH": f"{tmp_path / 'bin'}:$PATH",
    }
    return submit
