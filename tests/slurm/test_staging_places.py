"""Data to a node's own disk from S3, by the real s5cmd, and from another node of the step."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread

import pytest
from s3_double import S3Double, s3_double
from staging_parts import SIZE, StagingSite, contents

from conversion.upload import s5cmd
from slurm.staging import peers, sources
from slurm.staging.disk import PARTIAL, Disk
from slurm.staging.load import load_node
from slurm.staging.needs import Needs, StagingError
from slurm.staging.peers import Step
from slurm.staging.sources import Folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StagingSite:
    return StagingSite(tmp_path, monkeypatch, names=("common", "one", "two", "three", "held_out/common"))


# --- S3 ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[S3Double]:
    with s3_double() as double:
        yield double


@pytest.fixture
def s3(server: S3Double, site: StagingSite) -> S3Double:
    """A bucket that holds the datasets of this stage, the next one and the third; the shared folder holds them no longer."""
    server.start_afresh()
    site.set(**server.environment, SMOL_DATA_SOURCE="s3://bucket/data")
    for command in (["mb", "s3://bucket"], ["cp", f"{site.shared}/", "s3://bucket/data/"]):
        subprocess.run([s5cmd.find_program(), *command], check=True, capture_output=True)
    site.shared.rename(site.folder / "in_s3")
    site.monkeypatch.setattr(s5cmd, "RETRIES", 0)
    site.monkeypatch.setattr(sources, "DELAYS", (0.01, 0.01))
    return server


def without_fourth_stage(site: StagingSite) -> None:
    text = site.config.read_text()
    site.config.write_text(text.replace("    - {name: fourth, steps: 4, weights: {four: 1.0, one: 0.0}}\n", ""))


def test_all_that_lies_ahead_comes_from_s3_where_there_is_nothing_to_link_to(s3: S3Double, site: StagingSite) -> None:
    without_fourth_stage(site)
    assert site.stage() == 0
    assert site.copied() == ["common", "one", "two", "three", "held_out/common"] and site.linked() == []
    for name in site.copied():
        assert contents(site.disk / name) == contents(site.folder / "in_s3" / name)
    s3.read_faults = {".ds": [400] * 100}
    assert site.stage() == 0, "it is not read again"


def test_what_the_shared_folder_has_is_linked_beside_s3(s3: S3Double, site: StagingSite) -> None:
    (site.folder / "in_s3").rename(site.shared)
    without_fourth_stage(site)
    assert site.stage() == 0
    assert site.linked() == ["three", "tokenizer"]


def test_an_s3_that_answers_503_is_waited_for_and_then_the_job_is_started_again(
    s3: S3Double, site: StagingSite, capsys: pytest.CaptureFixture[str]
) -> None:
    without_fourth_stage(site)
    s3.read_faults = {"one/1.ds": [503] * 2}
    assert site.stage() == 0
    told = capsys.readouterr().err
    assert "n1: s3://bucket/data/one cannot be reached (SlowDown" in told and "; next attempt in 0 s\n" in told
    s3.read_faults = {"data/": [503] * 1000}
    site.checkpoint(4)
    assert site.stage() == 0, "going by the manifests that are here"
    (site.disk / "two" / "0.ds").unlink()
    assert site.stage() == 85
    told = capsys.readouterr().err
    assert "n1: s3://bucket/data/two cannot be reached (SlowDown" in told and "; giving up for now, to be started again" in told


def test_an_s3_that_lacks_the_data_is_refused(s3: S3Double, site: StagingSite, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.stage() == 93
    sentence = "s3://bucket/data/four/manifest.json is not there; mend SMOL_DATA_SOURCE, or copy the dataset there\n"
    assert f"n1: error: {sentence}" in capsys.readouterr().err
    site.set(SMOL_DATA_SOURCE="s3://elsewhere/data")
    assert site.stage() == 93
    sentence = "s3://elsewhere/data/common/manifest.json is not there; mend SMOL_DATA_SOURCE, or copy the dataset there\n"
    assert f"n1: error: {sentence}" in capsys.readouterr().err
    assert not site.copied()


# --- another node ------------------------------------------------------------------------------------------------------------


@contextmanager
def node(site: StagingSite, name: str, place: int) -> Iterator[tuple[Step, Disk]]:
    """One of two, n1 and n2, that serves its disk."""
    site.set(SLURMD_NODENAME=name, SLURM_STEP_NUM_NODES=2, SLURM_NODEID=place)
    site.monkeypatch.setattr(peers, "address_of", lambda node: "127.0.0.1")
    step, disk = Step(site.folder / "step"), Disk(site.folder / "disk" / name)
    disk.root.mkdir(parents=True, exist_ok=True)
    with step.serving(disk.root):
        yield step, disk


NEEDS = Needs(soon=["common", "two"], later=[], rest=[], elsewhere=[])


def load(site: StagingSite, step: Step, disk: Disk) -> None:
    load_node(NEEDS, Folder(site.shared), site.shared, disk, step)


@pytest.fixture
def pair(site: StagingSite) -> Iterator[tuple[Step, Disk]]:
    """n2, which has nothing, beside n1, which has all; of the datasets the source has nothing left but their manifests."""
    load(site, Step(site.folder / "before"), Disk(site.disk))
    for path in site.shared.rglob("*.ds"):
        path.unlink()
    with node(site, "n1", 0), node(site, "n2", 1) as second:
        yield second


def test_a_node_gets_from_another_what_that_has(
    site: StagingSite, pair: tuple[Step, Disk], capsys: pytest.CaptureFixture[str]
) -> None:
    (pair[1].root / "two" / PARTIAL).mkdir(parents=True)
    (pair[1].root / "two" / PARTIAL / "0.ds").write_bytes((site.disk / "two" / "0.ds").read_bytes()[:1000])
    load(site, *pair)
    for name in NEEDS.soon:
        assert contents(pair[1].root / name) == contents(site.disk / name)
    assert "n2: loaded: 6 files from n1\n" in capsys.readouterr().err, "the source could not have given them"


def test_what_another_node_has_wrong_is_not_taken(site: StagingSite, pair: tuple[Step, Disk]) -> None:
    (site.disk / "two" / "1.ds").write_bytes(bytes(SIZE))
    with pytest.raises(StagingError, match=r"two/1\.ds cannot be read \(No such file or directory\)"):
        load(site, *pair)
    assert not (pair[1].root / "two" / "1.ds").exists()


def test_where_another_node_is_gone_the_source_is_read(site: StagingSite, capsys: pytest.CaptureFixture[str]) -> None:
    with node(site, "n2", 1) as second:
        gone = {"address": "127.0.0.1", "port": 9, "token": "x"}
        (site.folder / "step" / "n1.json").write_text(json.dumps(gone))
        load(site, *second)
    assert f"n2: loaded: 6 files from {site.shared}\n" in capsys.readouterr().err


def test_a_node_whose_task_does_not_start_is_not_waited_for(site: StagingSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "GATHER_SECONDS", 0.1)
    with node(site, "n2", 1) as second:
        load(site, *second)
        assert second[0].peers() == []


def test_files_are_given_to_those_who_know_the_token_and_none_from_elsewhere(
    site: StagingSite, pair: tuple[Step, Disk]
) -> None:
    told = json.loads((site.folder / "step" / "n1.json").read_text())
    assert (site.folder / "step" / "n1.json").stat().st_mode & 0o077 == 0

    def status(name: str, **headers: str) -> int:
        with closing(HTTPConnection(told["address"], told["port"], timeout=60)) as connection:
            connection.request("GET", name, headers=headers)
            return connection.getresponse().status

    right = {"Authorization": told["token"], "Range": "bytes=0-"}
    assert status("/two/0.ds", **right) == 206
    assert status("/two/0.ds", **{**right, "Authorization": "guessed"}) == status("/two/0.ds") == 403
    assert status("/two/0.ds", Authorization=told["token"]) == 404
    (site.disk / "two" / PARTIAL).mkdir()
    (site.disk / "two" / PARTIAL / "3.ds").touch()
    (site.disk / "link").symlink_to(site.config)
    for name in ("/two/none", "/two", "/../../config.yaml", "/%2e%2e/%2e%2e/config.yaml", "/link", f"/two/{PARTIAL}/3.ds"):
        assert status(name, **right) == 404, name


def test_nodes_end_together(site: StagingSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(peers, "SPEAK_SECONDS", 0.1)
    with node(site, "n1", 0) as (first, _), node(site, "n2", 1) as (second, _):
        told = ""
        waiting = Thread(target=first.end)
        waiting.start()
        while "n1: through; waiting for n2\n" not in told:
            told += capsys.readouterr().err
        assert waiting.is_alive()
        second.end()
        waiting.join()


def test_a_nodes_address_is_what_slurm_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert peers.address_of("n7") == "n7", "no scontrol, as in a container"
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "NodeName=$3 NodeAddr=10.0.0.7 NodeHostName=n7"\n')
    (tmp_path / "scontrol").chmod(0o755)
    assert peers.address_of("n7") == "10.0.0.7"
