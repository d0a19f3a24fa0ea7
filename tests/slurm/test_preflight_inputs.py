"""Checks of what a configuration names and of what all nodes share: data, layout, disks, room for checkpoints, S3, the Hub."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
from preflight_parts import CheckedNode
from s3_double import S3Double, s3_double
from tiny_runs import REPOSITORY

from slurm.preflight import storage
from slurm.preflight.__main__ import main
from slurm.preflight.findings import read_report
from slurm.preflight.node import look_at


def test_the_layout_must_fit_the_ranks(checked: CheckedNode) -> None:
    assert checked.verdict("layout") == "ok"
    checked.change(ranks=3)
    assert checked.verdict("layout") == "stop" and "gpus=3 make 3 copies" in checked.check("layout").sentence


def test_of_a_job_that_is_none_of_pre_training_the_machine_alone_is_checked(checked: CheckedNode) -> None:
    checked.change(training=None)
    for name in ("layout", "data", "space", "inodes", "s3", "hub"):
        assert checked.verdict(name) == "skipped" and checked.check(name).sentence == "the job is none of pre-training"
    assert checked.verdict("scratch") == checked.verdict("shared") == "ok"


def test_data_must_be_what_the_manifests_say(checked: CheckedNode, corpus: Path) -> None:
    assert checked.check("data").value.startswith("4 datasets, ")
    checked.change(training=checked.config("model.vocab_size=512"))
    assert checked.verdict("data") == "stop" and "model.vocab_size=512" in checked.check("data").sentence
    checked.change(training=checked.config("data.tokenizer=another/tokenizer"))
    assert checked.verdict("data") == "stop" and "another/tokenizer" in checked.check("data").sentence
    cut = checked.folder / "cut"
    cut.mkdir()
    for file in (corpus / "tokens" / "code").iterdir():
        (cut / file.name).write_bytes(file.read_bytes()[: 100 if file.suffix == ".ds" else None])
    checked.change(training=checked.config(f"data.datasets.code={cut}"))
    assert checked.verdict("data") == "stop" and str(cut) in checked.check("data").sentence


def test_data_that_are_missing_stop_unless_staging_brings_them(checked: CheckedNode) -> None:
    checked.change(training=checked.config("data.datasets.code=/no/such/folder"))
    found = checked.check("data")
    assert found.verdict == "stop" and "/no/such/folder/manifest.json cannot be read" in found.sentence
    checked.change(source="s3://bucket/data")
    assert checked.check("data").sentence.startswith("dataset code comes from s3://bucket/data; staging")


def test_data_of_finished_stages_may_be_gone(checked: CheckedNode) -> None:
    checked.change(training=checked.config("data.stages.1.weights={docs: 1}", "data.datasets.code=/gone"))
    assert checked.verdict("data") == "stop"
    saved(checked, 6)
    assert checked.verdict("data") == "ok"


# --- disks -----------------------------------------------------------------------------------------------------------------


def saved(checked: CheckedNode, *steps: int) -> None:
    for step in steps:
        (checked.node.run / f"iter_{step:07d}").mkdir(parents=True)
        (checked.node.run / f"iter_{step:07d}" / "COMPLETE").touch()


def test_disks_are_measured_and_judged(checked: CheckedNode, tmp_path: Path) -> None:
    small = {"megabytes": 16, "streams": 2}
    checked.limits(storage=small)
    for check in ("scratch", "shared"):
        found = checked.check(check)
        assert (found.verdict, found.want) == ("ok", "") and found.value.startswith("write "), found
    checked.limits(storage={**small, "scratch_write": 1e6, "shared_read": 1e6})
    assert checked.verdict("scratch") == checked.verdict("shared") == "bad"
    assert f"{tmp_path / 'disk'} is slow (write " in checked.check("scratch").sentence
    assert not list(tmp_path.rglob(".speed*"))
    checked.change(scratch=None)
    assert checked.verdict("scratch") == "skipped"


def test_a_folder_that_cannot_be_written_is_bad(checked: CheckedNode, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    checked.change(scratch=tmp_path / "file" / "disk")
    found = checked.check("scratch")
    assert found.verdict == "bad" and "cannot be written and read (Not a directory)" in found.sentence


def test_speed_is_measured_where_the_cache_cannot_be_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_DIRECT", os.O_DIRECTORY | os.O_CREAT)  # EINVAL, as a file system that has no O_DIRECT answers
    assert min(storage.measure(tmp_path, "n1", 2**24, 2)) > 0


def test_the_checkpoints_to_come_must_have_room(checked: CheckedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked.verdict("space") == checked.verdict("inodes") == "ok"
    monkeypatch.setattr(storage, "free_bytes", lambda run: 1000)
    assert checked.verdict("space") == "stop" and "3 more checkpoints of" in checked.check("space").sentence
    status = SimpleNamespace(f_files=10, f_favail=5)
    monkeypatch.setattr(storage.os, "statvfs", lambda path: status)
    assert checked.verdict("inodes") == "stop" and "has room for 5 more files, 9 are needed" in checked.check("inodes").sentence
    status.f_files = 0
    assert checked.verdict("inodes") == "skipped"


def test_checkpoints_that_are_there_need_no_more_room(checked: CheckedNode) -> None:
    config = checked.config("checkpoint.keep_last=2", "checkpoint.keep_every_steps=3")  # of ten steps
    assert storage.checkpoints_to_come(config, checked.node.run) == 3 + 3
    saved(checked, 3, 5)
    assert storage.checkpoints_to_come(config, checked.node.run) == 2 + 2
    saved(checked, 7, 8)
    assert storage.checkpoints_to_come(config, checked.node.run) == 1 + 1, "one is always being written"


# --- S3 and the Hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def s3(checked: CheckedNode, monkeypatch: pytest.MonkeyPatch) -> S3Double:  # type: ignore[misc]
    with s3_double() as double:
        for name, value in double.environment.items():
            monkeypatch.setenv(name, value)
        yield double


def test_s3_is_asked_for_what_the_job_does_there(checked: CheckedNode, s3: S3Double) -> None:
    import boto3

    assert checked.check("s3").sentence == "no s3:// address is used"
    checked.change(source="s3://smol/data")
    assert checked.verdict("s3") == "stop" and "there is no bucket smol" in checked.check("s3").sentence
    client = boto3.client("s3", endpoint_url=s3.address)
    client.create_bucket(Bucket="smol")
    assert checked.check("s3").value == "reads s3://smol/data"
    checkpoint = SimpleNamespace(upload="s3://smol/checkpoints")
    checked.change(training=SimpleNamespace(checkpoint=checkpoint))
    assert checked.check("s3").value == "reads s3://smol/data, writes s3://smol/checkpoints"
    assert s3.arrived[1:] == ["/smol/checkpoints/.preflight/n1"]
    assert not client.list_objects_v2(Bucket="smol").get("Contents"), "what was written is removed again"
    s3.faults = {".preflight": [403] * 9}
    assert checked.verdict("s3") == "stop" and "access is denied" in checked.check("s3").sentence


def test_an_s3_that_does_not_answer_stops_nothing(checked: CheckedNode, monkeypatch: pytest.MonkeyPatch, s3: S3Double) -> None:
    from conversion.upload import s5cmd

    monkeypatch.setattr(s5cmd, "RETRIES", 0)
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:1")
    checked.change(source="s3://smol/data")
    assert checked.verdict("s3") == "skipped" and "no answer now" in checked.check("s3").sentence


class _Hub(BaseHTTPRequestHandler):
    """Answers every question with the status that the repository's name ends with."""

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        status = int(self.path.removesuffix("/auth-check")[-3:])
        self.send_response(status)
        if status == 403:
            self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_the_hub_is_asked_for_the_tokenizer(checked: CheckedNode) -> None:
    """In a process of its own, since huggingface_hub reads its environment once."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    script = """
import sys
from pathlib import Path
from slurm.preflight import access
from slurm.preflight.node import run_check
from types import SimpleNamespace as N
for name in sys.argv[1:]:
    print(*[getattr(run_check(access.check_hub, N(config=N(data=N(tokenizer=name)))), f) for f in ("verdict", "sentence")])
"""
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(REPOSITORY)}
    names = ["org/t-200", "org/t-403", "org/t-401", "org/t-503", "http:/", str(checked.corpus / "tokenizer")]
    run = [sys.executable, "-c", script, *names]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120, check=False)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    passed, gated, denied, busy, broken, local = done.stdout.splitlines()
    assert passed == "ok "
    assert gated.startswith("stop the Hub refuses org/t-403 (403); run `hf auth login`") and denied.startswith("stop")
    assert busy == "skipped no answer now: the Hub says 503"
    assert broken.startswith("skipped no answer now: ") and local == "skipped no repository of the Hub is used"


def test_the_hub_is_left_alone_where_it_is_switched_off(checked: CheckedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checked.change(training=checked.config("data.tokenizer=org/tokenizer"))
    assert checked.check("hub").sentence == "HF_HUB_OFFLINE is set"


# --- the list and the command ----------------------------------------------------------------------------------------------


def test_the_report_names_the_check_that_never_ended(checked: CheckedNode, capsys: pytest.CaptureFixture[str]) -> None:
    def hang(node: object) -> object:
        raise KeyboardInterrupt

    checks = {"breaks": lambda node: 1 / 0, "hangs": hang, "later": hang}
    with pytest.raises(KeyboardInterrupt):
        look_at(checked.node, checked.folder, checks)  # type: ignore[arg-type]
    report = read_report(checked.folder / "n1.json")
    assert report.running == "hangs" and list(report.findings) == ["breaks"]
    assert "the check broke (ZeroDivisionError: division by zero)" in report.findings["breaks"].sentence
    assert capsys.readouterr().err.startswith("n1: breaks: the check broke")


def test_the_command_takes_its_settings_from_the_environment(checked: CheckedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    from smol_config import to_yaml

    (checked.folder / "config.yaml").write_text(to_yaml(checked.config()))
    (checked.folder / "limits.yaml").write_text("storage: {megabytes: 16, streams: 1}\n")
    settings = {"SMOL_CONFIG": "config.yaml", "SMOL_PREFLIGHT": "limits.yaml"}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(checked.folder / value))
    for name, value in {
        "SMOL_GPUS_PER_NODE": "h100:0",
        "SMOL_LOCAL_DATA": f"{checked.folder}/disk/%N",
        "SMOL_NODES": "3",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    assert main(["node", "--out", str(checked.folder / "out")]) == 0
    told = json.loads((checked.folder / "out" / "n7.json").read_text())
    found = {one.pop("check"): one for one in told["results"]}
    assert told["node"] == "n7" and told["running"] is None and found["layout"]["verdict"] == "stop"
    assert set(found["layout"]) == {"verdict", "value", "want", "sentence"}
    assert (checked.folder / "disk" / "n7").is_dir()


def test_limits_that_cannot_be_read_are_refused(checked: CheckedNode, capsys: pytest.CaptureFixture[str]) -> None:
    (checked.folder / "limits.yaml").write_text("gpu: {gem_tflops: 1}\n")
    assert main(["network", "--out", str(checked.folder), "--limits", str(checked.folder / "limits.yaml")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "gpu.gem_tflops: unknown key" in said and "'gemm_tflops'" in said
