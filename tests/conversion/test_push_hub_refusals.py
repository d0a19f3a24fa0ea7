"""`push` to a Hub that it cannot go to: rights, names, answers that are not the Hub's; --dry-run, and what is printed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hf_folders import contents, hf_folder
from hub_writes_double import HOLD, PAGE, HubWritesDouble
from huggingface_hub import HfApi
from huggingface_hub.utils import enable_progress_bars
from small_models import Command
from tiny_runs import REPOSITORY

from conversion import ConversionError, Unreachable
from conversion.push import Options, push
from conversion.upload import flow, hub
from smol_console import Progress

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")  # huggingface_hub's own


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hf_folder(tmp_path / "step_10", shards=2)


# --- what cannot be done -----------------------------------------------------------------------------------------------------


def test_a_token_that_may_not_write(
    double: HubWritesDouble, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.hub.new("me/model")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    for target in ("me/model", "me/new", "you/new"):
        ran = command("push", folder, target)
        assert ran.code == 2 and f"error: the token may not write to {target} (You don't have the rights to write" in ran.err
        assert "hf_reader" not in ran.err and "next attempt" not in ran.err
    assert list(double.hub.repositories) == ["me/model"] and double.hub.titles("me/model") == ["initial commit"]


def test_no_token_and_a_wrong_one(
    double: HubWritesDouble, folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    ran = command("push", folder, "me/model")
    assert ran.code == 2 and "does not accept the token (Invalid credentials in Authorization header); set HF_TOKEN" in ran.err
    assert "hf_unknown" not in ran.err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    double.log.clear()
    ran = command("push", folder, "me/model")
    assert ran.code == 2 and "there is no token; set HF_TOKEN, or log in with: hf auth login" in ran.err
    assert double.log == []


def test_answers_that_are_not_the_hubs(double: HubWritesDouble, folder: Path, hub_waits: list[float], command: Command) -> None:
    double.faults["refs"] = [PAGE] * 100
    ran = command("push", folder, "me/model")
    assert ran.code == 2 and "does not answer as the Hub does (JSONDecodeError" in ran.err
    assert "look at HF_ENDPOINT and proxies" in ran.err and "Traceback" not in ran.err


def test_a_hub_out_of_reach(
    double: HubWritesDouble, folder: Path, hub_waits: list[float], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    ran = command("push", folder, "me/model")
    assert ran.code == 2 and "error: http://127.0.0.1:9 cannot be reached (" in ran.err
    assert ran.err.count("; next attempt in") == len(flow.DELAYS) and hub_waits == list(flow.DELAYS)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Unreachable, match="is not asked, since HF_HUB_OFFLINE is set; unset it"):
        push(folder, "me/model", Options())


def test_a_hub_that_is_silent_or_broken(
    double: HubWritesDouble, folder: Path, hub_waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SILENCE", 0.2)
    monkeypatch.setattr(flow, "DELAYS", (1.0,))
    double.faults["tree"] = [HOLD] * 100
    with pytest.raises(Unreachable, match="cannot be reached"):
        push(folder, "me/model", Options())
    monkeypatch.setattr(hub, "SILENCE", 60.0)
    double.faults["tree"] = [500] * 100
    with pytest.raises(Unreachable, match=r"fails with 500 \(injected\)"):
        push(folder, "me/model", Options())


def test_what_the_hub_refuses_is_told_in_its_words(double: HubWritesDouble, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: none-such\n---\n")
    with pytest.raises(ConversionError, match=r"me/model: Invalid metadata in README.md. - no such license; mend that"):
        push(folder, "me/model", Options())
    double.faults["batch"] = [402]
    with pytest.raises(ConversionError, match=r"refuses me/model with 402 \(injected\); mend what it names"):
        push(folder, "me/model", Options(revision="x"))
    assert double.hub.titles("me/model") == ["initial commit"]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (ConnectionError("Network error"), "cannot be reached .Network error"),
        (RuntimeError("CAS error"), "sending to me/model failed .CAS error"),
        (PermissionError("the token has run out"), "sending to me/model failed .the token has run out"),
    ],
)
def test_what_hf_xet_raises_is_tried_again(
    fault: Exception,
    sentence: str,
    double: HubWritesDouble,
    folder: Path,
    hub_waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults, preupload = [fault] * 3, HfApi.preupload_lfs_files

    def raise_first(*arguments: Any, **options: Any) -> None:
        if faults:
            raise faults.pop()
        preupload(*arguments, **options)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", raise_first)
    push(folder, "me/model", Options())
    assert double.hub.files("me/model") == contents(folder) and hub_waits == list(flow.DELAYS[:3])
    faults += [fault] * 100
    with pytest.raises(Unreachable, match=sentence):
        push(folder, "me/model", Options(revision="x"))


def test_a_folder_that_changes_while_it_is_sent(double: HubWritesDouble, folder: Path) -> None:
    weights = sorted(folder.glob("*.safetensors"))[0]
    double.faults["preupload"] = [weights.unlink]
    with pytest.raises(ConversionError, match=r"00001-of-00002.safetensors cannot be read \(No such file or directory\)"):
        push(folder, "me/model", Options())
    assert double.hub.titles("me/model") == ["initial commit"]


def test_a_tag_is_no_branch(double: HubWritesDouble, folder: Path) -> None:
    push(folder, "me/model", Options(tag="v1"))
    with pytest.raises(ConversionError, match="--revision v1 is a tag of me/model; give the name of a branch"):
        push(folder, "me/model", Options(revision="v1"))
    assert list(double.hub.repositories["me/model"].branches) == ["main"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model"], "model names no namespace; write namespace/model"),
        (["a/b/c"], "a/b/c is no repository (Repo id must be in the form"),
        (["./runs/hf"], "is no repository ("),
        (["me/mo del"], "write namespace/name, or a URL such as s3://bucket/prefix"),
        (["me/model", "--revision", "step 10"], "--revision 'step 10' is no name for a branch or tag; use letters, digits"),
        (["me/model", "--revision", ""], "--revision '' is no name"),
        (["me/model", "--revision", "a..b"], "--revision 'a..b' is no name"),
        (["me/model", "--revision", "x.lock"], "--revision 'x.lock' is no name"),
        (["me/model", "--revision", "0123456789" * 4], "is no name for a branch"),
        (["me/model", "--tag", "/v1"], "--tag '/v1' is no name"),
        (["me/model", "--message", " "], "--message is empty; write what the commit is, or leave it out"),
    ],
)
def test_names_that_the_hub_does_not_take(
    arguments: list[str], sentence: str, double: HubWritesDouble, folder: Path, command: Command
) -> None:
    ran = command("push", folder, *arguments)
    assert (ran.code, sentence in ran.err) == (2, True), ran.err
    assert double.log == []


# --- --dry-run ---------------------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_and_changes_nothing(double: HubWritesDouble, folder: Path, command: Command) -> None:
    ran = command("push", folder, "me/model", "--dry-run")
    assert ran.code == 0 and "no such repository, or none that the token may see; it will be made, private" in ran.out
    assert "would send 8 files (20.4 kB); 0 files (0 Bytes) are there; 0 would be removed" in ran.out
    push(folder, "me/model", Options())
    double.log.clear()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").unlink()
    ran = command("push", folder, "me/model", "--dry-run")
    assert ran.code == 0 and "would send 1 file (2 Bytes); 6 files (20.3 kB) are there; 1 would be removed" in ran.out
    for line in ("  send       2 Bytes  config.json", "  keep      2 Bytes  tokenizer.json", "  remove              README.md"):
        assert line.split() in [told.split() for told in ran.out.splitlines()]
    ran = command("push", folder, "me/model", "--dry-run", "--revision", "next")
    assert ran.code == 0 and "tree/next: no such branch; it will be made" in ran.out
    assert set(double.log) == {"refs", "tree"}


def test_a_dry_run_without_reach_lists_the_folder(
    double: HubWritesDouble, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ran = command("push", folder, "me/model", "--dry-run")
    assert ran.code == 0 and "is not known: " in ran.out and "HF_HUB_OFFLINE is set" in ran.out
    assert "tokenizer.json" in ran.out and "the folder has 8 files (20.4 kB)" in ran.out


def test_progress_is_lines_in_a_log_and_a_bar_on_a_terminal(
    double: HubWritesDouble, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress.__init__, "__defaults__", (None, 0.0))  # a line each time, not every 15 seconds
    size = sum(map(len, contents(folder).values()))
    ran = command("push", folder, "me/model")
    assert f"sending: {size:,} of {size:,} B, " in ran.err and f"hashing: {size:,} of {size:,} B, " in ran.err
    assert "%|" not in ran.err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    enable_progress_bars()  # transformers' switch, which other commands of this process turn, is the Hub's too
    ran = command("push", hf_folder(folder.parent / "other", shards=2, seed=1), "me/other")
    assert ran.code == 0 and "sending: 100%" in ran.err and "model-00001-of-00002.safetensors: 100%" in ran.err


def test_pushing_imports_no_torch() -> None:
    code = "import sys, conversion.push, conversion.upload.objects; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "False\n"
