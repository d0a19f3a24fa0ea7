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
from staging_parts import SIZE, Bench, contents

from conversion.upload import s5cmd
from slurm.staging import peers, sources
from slurm.staging.disk import PARTIAL, Disk
from slurm.staging.load import load_node
from slurm.staging.needs import Needs, StagingError
from slurm.staging.peers import Step
from slurm.staging.sources import Folder


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch, names=("common", "one", "two", "three", "held_out/common"))


# --- S3 ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[S3Double]:
    with s3_double() as double:
        yield double


@pytest.fixture
def s3(server: S3Double, bench: Bench) -> S3Double:
    """A bucket that holds the datasets of this stage, the next one and the third; the shared folder holds them no longer."""
    server.ask("reset")
    server.reset()
    bench.set(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_DEFAULT_REGION="us-east-1")
    bench.set(S3_ENDPOINT_URL=server.address, SMOL_DATA_SOURCE="s3://bucket/data")
    for command in (["mb", "s3://bucket"], ["cp", f"{bench.shared}/", "s3://bucket/data/"]):
        subprocess.run([s5cmd.find_program(), *command], check=True, capture_output=True)
    bench.shared.rename(bench.folder / "in_s3")
    bench.monkeypatch.setattr(s5cmd, "RETRIES", 0)
    bench.monkeypatch.setattr(sources, "DELAYS", (0.01, 0.01))
    return server


def without_fourth_stage(bench: Bench) -> None:
    text = bench.config.read_text()
    bench.config.write_text(text.replace("    - {name: fourth, steps: 4, weights: {four: 1.0, one: 0.0}}\n", ""))


def test_all_that_lies_ahead_comes_from_s3_where_there_is_nothing_to_link_to(s3: S3Double, bench: Bench) -> None:
    without_fourth_stage(bench)
    assert bench.stage() == 0
    assert bench.copied() == ["common", "one", "two", "three", "held_out/common"] and bench.linked() == []
    for name in bench.copied():
        assert contents(bench.disk / name) == contents(bench.folder / "in_s3" / name)
    s3.read_faults = {".ds": [400] * 100}
    assert bench.stage() == 0, "it is not read again"


def test_what_the_shared_folder_has_is_linked_beside_s3(s3: S3Double, bench: Bench) -> None:
    (bench.folder / "in_s3").rename(bench.shared)
    without_fourth_stage(bench)
    assert bench.stage() == 0
    assert bench.linked() == ["three", "tokenizer"]


def test_an_s3_that_answers_503_is_waited_for_and_then_the_job_is_started_again(
    s3: S3Double, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    without_fourth_stage(bench)
    s3.read_faults = {"one/1.ds": [503] * 2}
    assert bench.stage() == 0
    told = capsys.readouterr().err
    assert "n1: s3://bucket/data/one cannot be reached (SlowDown" in told and "; next attempt in 0 s\n" in told
    s3.read_faults = {"data/": [503] * 1000}
    bench.checkpoint(4)
    assert bench.stage() == 0, "going by the manifests that are here"
    (bench.disk / "two" / "0.ds").unlink()
    assert bench.stage() == 85
    told = capsys.readouterr().err
    assert "n1: s3://bucket/data/two cannot be reached (SlowDown" in told and "; giving up for now, to be started again" in told


def test_an_s3_that_lacks_the_data_is_refused(s3: S3Double, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.stage() == 93
    sentence = "s3://bucket/data/four/manifest.json is not there; mend SMOL_DATA_SOURCE, or copy the dataset there\n"
    assert f"n1: error: {sentence}" in capsys.readouterr().err
    bench.set(SMOL_DATA_SOURCE="s3://elsewhere/data")
    assert bench.stage() == 93
    sentence = "s3://elsewhere/data/common/manifest.json is not there; mend SMOL_DATA_SOURCE, or copy the dataset there\n"
    assert f"n1: error: {sentence}" in capsys.readouterr().err
    assert not bench.copied()


# --- another node ------------------------------------------------------------------------------------------------------------


@contextmanager
def node(bench: Bench, name: str, place: int) -> Iterator[tuple[Step, Disk]]:
    """One of two, n1 and n2, that serves its disk."""
    bench.set(SLURMD_NODENAME=name, SLURM_STEP_NUM_NODES=2, SLURM_NODEID=place)
    bench.monkeypatch.setattr(peers, "address_of", lambda node: "127.0.0.1")
    step, disk = Step(bench.folder / "step"), Disk(bench.folder / "disk" / name)
    disk.root.mkdir(parents=True, exist_ok=True)
    with step.serving(disk.root):
        yield step, disk


NEEDS = Needs(soon=["common", "two"], later=[], rest=[], elsewhere=[])


def load(bench: Bench, step: Step, disk: Disk) -> None:
    load_node(NEEDS, Folder(bench.shared), bench.shared, disk, step)


@pytest.fixture
def pair(bench: Bench) -> Iterator[tuple[Step, Disk]]:
    """n2, which has nothing, beside n1, which has all; of the datasets the source has nothing left but their manifests."""
    load(bench, Step(bench.folder / "before"), Disk(bench.disk))
    for path in bench.shared.rglob("*.ds"):
        path.unlink()
    with node(bench, "n1", 0), node(bench, "n2", 1) as second:
        yield second


def test_a_node_gets_from_another_what_that_has(
    bench: Bench, pair: tuple[Step, Disk], capsys: pytest.CaptureFixture[str]
) -> None:
    (pair[1].root / "two" / PARTIAL).mkdir(parents=True)
    (pair[1].root / "two" / PARTIAL / "0.ds").write_bytes((bench.disk / "two" / "0.ds").read_bytes()[:1000])
    load(bench, *pair)
    for name in NEEDS.soon:
        assert contents(pair[1].root / name) == contents(bench.disk / name)
    assert "n2: loaded: 6 files from n1\n" in capsys.readouterr().err, "the source could not have given them"


def test_what_another_node_has_wrong_is_not_taken(bench: Bench, pair: tuple[Step, Disk]) -> None:
    (bench.disk / "two" / "1.ds").write_bytes(bytes(SIZE))
    with pytest.raises(StagingError, match=r"two/1\.ds cannot be read \(No such file or directory\)"):
        load(bench, *pair)
    assert not (pair[1].root / "two" / "1.ds").exists()


def test_where_another_node_is_gone_the_source_is_read(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with node(bench, "n2", 1) as second:
        gone = {"address": "127.0.0.1", "port": 9, "token": "x"}
        (bench.folder / "step" / "n1.json").write_text(json.dumps(gone))
        load(bench, *second)
    assert f"n2: loaded: 6 files from {bench.shared}\n" in capsys.readouterr().err


def test_a_node_whose_task_does_not_start_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "GATHER_SECONDS", 0.1)
    with node(bench, "n2", 1) as second:
        load(bench, *second)
        assert second[0].peers() == []


def test_files_are_given_to_those_who_know_the_token_and_none_from_elsewhere(bench: Bench, pair: tuple[Step, Disk]) -> None:
    told = json.loads((bench.folder / "step" / "n1.json").read_text())
    assert (bench.folder / "step" / "n1.json").stat().st_mode & 0o077 == 0

    def status(name: str, **headers: str) -> int:
        with closing(HTTPConnection(told["address"], told["port"], timeout=60)) as connection:
            connection.request("GET", name, headers=headers)
            return connection.getresponse().status

    right = {"Authorization": told["token"], "Range": "bytes=0-"}
    assert status("/two/0.ds", **right) == 206
    assert status("/two/0.ds", **{**right, "Authorization": "guessed"}) == status("/two/0.ds") == 403
    assert status("/two/0.ds", Authorization=told["token"]) == 404
    (bench.disk / "two" / PARTIAL).mkdir()
    (bench.disk / "two" / PARTIAL / "3.ds").touch()
    (bench.disk / "link").symlink_to(bench.config)
    for name in ("/two/none", "/two", "/../../config.yaml", "/%2e%2e/%2e%2e/config.yaml", "/link", f"/two/{PARTIAL}/3.ds"):
        assert status(name, **right) == 404, name


def test_nodes_end_together(bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(peers, "SPEAK_SECONDS", 0.1)
    with node(bench, "n1", 0) as (first, _), node(bench, "n2", 1) as (second, _):
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
