"""`push` to a Hub: one commit a push and no byte twice, through kills, lost answers and other people's commits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hf_folders import contents, hf_folder, large
from hub_repositories import Entry
from hub_writes_double import CUT, HOLD, LOSE, PAGE, HubWritesDouble
from huggingface_hub import snapshot_download
from small_models import Command
from tiny_runs import REPOSITORY

from conversion import ConversionError, Unreachable
from conversion.push import Options, push
from conversion.upload import flow, hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")  # huggingface_hub's own


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hf_folder(tmp_path / "step_10", shards=2)


def test_a_push_makes_a_private_repository_and_one_commit(
    double: HubWritesDouble, folder: Path, tmp_path: Path, command: Command
) -> None:
    for hidden in (".cache/huggingface/x", ".git/config", ".gitattributes"):
        (folder / hidden).parent.mkdir(parents=True, exist_ok=True)
        (folder / hidden).write_text("not to be sent")
    ran = command("push", folder, "me/model")
    assert ran.code == 0, ran.err
    assert f"sent 8 files (20.4 kB) to {double.address}/me/model/tree/main" in ran.out
    assert double.hub.repositories["me/model"].private
    assert double.hub.titles("me/model") == ["Upload step_10", "initial commit"]
    snapshot_download("me/model", local_dir=tmp_path / "read", endpoint=double.address, token="hf_writer")
    assert contents(tmp_path / "read") == contents(folder) == double.hub.files("me/model")
    assert double.hub.arrived == dict.fromkeys(large(folder).values(), 1)


def test_a_public_repository_and_the_words_of_the_commit(double: HubWritesDouble, folder: Path) -> None:
    pushed = push(folder, "me/model", Options(public=True, message="Ten steps"))
    repository = double.hub.repositories["me/model"]
    assert not repository.private and double.hub.titles("me/model")[0] == "Ten steps"
    assert (pushed.commit, pushed.changed, pushed.files) == (repository.branches["main"], True, 8)
    assert pushed.bytes == sum(map(len, contents(folder).values()))


def test_the_same_folder_again_sends_nothing_and_makes_no_commit(
    double: HubWritesDouble, folder: Path, command: Command
) -> None:
    first = push(folder, "me/model", Options())
    double.log.clear()
    again = push(folder, "me/model", Options(message="Again"))
    assert set(double.log) == {"refs", "tree"}
    assert (again.changed, again.files, again.bytes, again.commit) == (False, 0, 0, first.commit)
    assert "holds this folder already; nothing was sent" in command("push", folder, "me/model").out


def test_what_changed_is_sent_and_what_is_gone_is_removed(double: HubWritesDouble, folder: Path) -> None:
    push(folder, "me/model", Options())
    unchanged = large(folder)
    hf_folder(folder.parent / "other", seed=1)
    (folder.parent / "other" / "model.safetensors").rename(folder / "extra.safetensors")
    (folder / "tokenizer.json").write_text("[]")  # of the same size
    (folder / "README.md").unlink()
    pushed = push(folder, "me/model", Options())
    assert (pushed.files, double.hub.files("me/model")) == (2, contents(folder))
    assert all(double.hub.arrived[oid] == 1 for oid in unchanged.values())
    assert ".gitattributes" in double.hub.repositories["me/model"].files("main")


def test_a_branch_for_each_step(double: HubWritesDouble, folder: Path) -> None:
    """Each begins without files: nobody can load another step's weights under its name, not even for a moment."""
    push(folder, "me/model", Options())
    branch = "stage1-step-40000"
    empty = []
    double.faults["commit"] = [lambda: empty.append(double.hub.files("me/model", branch))]
    pushed = push(folder, "me/model", Options(revision=branch))
    assert empty == [{}] and double.hub.files("me/model", branch) == contents(folder)
    assert double.hub.titles("me/model", branch) == ["Upload step_10", "initial commit"]
    assert pushed.url == f"{double.address}/me/model/tree/{branch}"
    assert double.hub.arrived == dict.fromkeys(large(folder).values(), 1)  # main's large files were there


def test_a_tag_is_made_once_and_not_moved(double: HubWritesDouble, folder: Path, hub_waits: list[float]) -> None:
    first = push(folder, "me/model", Options())
    double.faults["tag"] = [503, LOSE]
    tagged = push(folder, "me/model", Options(tag="v1"))
    assert double.hub.repositories["me/model"].tags == {"v1": first.commit}
    assert (tagged.commit, tagged.changed, tagged.files) == (first.commit, True, 0)
    assert not push(folder, "me/model", Options(tag="v1")).changed
    (folder / "config.json").write_text("{}")
    with pytest.raises(ConversionError, match=r"--tag v1: me/model has that tag at commit .*; give another tag"):
        push(folder, "me/model", Options(tag="v1"))
    assert double.hub.titles("me/model") == ["Upload step_10", "initial commit"]


# --- faults ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        {"upload": [CUT, 503, None]},
        {"upload": [500, CUT]},
        {"refs": [503, CUT], "create": [502], "tree": [500]},
        {"create": [LOSE]},
        {"preupload": [500, 503], "batch": [503], "verify": [500]},
        {"card": [503, PAGE]},
        {"commit": [503, CUT, 500]},
        {"commit": [LOSE]},
        {"commit": [503, LOSE]},
        {"commit": [PAGE, 409]},
    ],
    ids=str,
)
def test_faults_are_outlived_with_one_commit_and_every_large_file_once(
    faults: dict[str, list[int | str | None]], double: HubWritesDouble, folder: Path, hub_waits: list[float]
) -> None:
    double.faults.update({kind: list(codes) for kind, codes in faults.items()})
    pushed = push(folder, "me/model", Options())
    assert not any(double.faults.values()), "every fault has happened"
    assert double.hub.titles("me/model") == ["Upload step_10", "initial commit"]
    assert double.hub.files("me/model") == contents(folder)
    assert double.hub.arrived == dict.fromkeys(large(folder).values(), 1)
    assert pushed.commit == double.hub.repositories["me/model"].branches["main"]


def test_a_commit_of_somebody_else_in_between_is_seen_and_built_upon(
    double: HubWritesDouble, folder: Path, hub_waits: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    repository = double.hub.new("me/model")

    def theirs() -> None:
        files = {**repository.files("main"), "notes.txt": double.hub.keep(b"theirs")}
        repository.add("main", "notes", {**files, "config.json": double.hub.keep(b"their own")})

    double.faults["commit"] = [theirs]
    push(folder, "me/model", Options())
    assert double.hub.titles("me/model") == ["Upload step_10", "notes", "initial commit"]
    assert double.hub.files("me/model") == contents(folder)
    assert double.hub.arrived == dict.fromkeys(large(folder).values(), 1)
    assert "me/model: another commit came in between (A commit has happened since." in capfd.readouterr().err


def test_what_somebody_else_made_equal_and_different_again_is_sent(
    double: HubWritesDouble, folder: Path, hub_waits: list[float]
) -> None:
    """huggingface_hub leaves out of a commit what it once saw on the branch; by then the branch may have changed again."""
    repository = double.hub.new("me/model")
    push(folder, "me/model", Options(revision="elsewhere"))
    ours = repository.files("elsewhere")["config.json"]

    def with_config(entry: Entry) -> None:
        repository.add("main", "theirs", {**repository.files("main"), "config.json": entry})

    double.faults["preupload"] = [lambda: with_config(ours)]
    double.faults["commit"] = [lambda: with_config(double.hub.keep(b"{}"))]
    push(folder, "me/model", Options())
    assert double.hub.files("me/model") == contents(folder)


def test_other_peoples_commits_are_given_way_to_so_many_times(
    double: HubWritesDouble, folder: Path, hub_waits: list[float]
) -> None:
    double.faults["commit"] = [412] * 100
    with pytest.raises(Unreachable, match="me/model: another commit came in between"):
        push(folder, "me/model", Options())
    assert double.log.count("commit") == len(flow.DELAYS) + 1 and hub_waits == list(flow.DELAYS)
    double.faults.clear()
    push(folder, "me/model", Options())
    assert double.hub.arrived == dict.fromkeys(large(folder).values(), 1)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [({"Retry-After": "7"}, 7), ({"ratelimit": '"api";r=0;t=55'}, 55), ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, 1)],
)
def test_a_hub_that_asks_for_patience_gets_it(
    headers: dict[str, str], wait: int, double: HubWritesDouble, folder: Path, hub_waits: list[float]
) -> None:
    double.faults["commit"], double.fault_headers = [429], headers
    push(folder, "me/model", Options())
    assert hub_waits == [wait]
    double.faults["refs"], double.fault_headers = [429], {"Retry-After": "3000"}
    with pytest.raises(Unreachable, match="asks for patience of 3000 s") as caught:
        push(folder, "me/model", Options())
    assert caught.value.wait == 3000


# --- kills -----------------------------------------------------------------------------------------------------------------


def environment(double: HubWritesDouble, home: Path) -> dict[str, str]:
    """For a push in a process of its own."""
    settings = {"HF_ENDPOINT": double.address, "HF_TOKEN": "hf_writer", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return {**os.environ, **settings, "HF_HOME": str(home)}


def start(double: HubWritesDouble, folder: Path, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "conversion", "push", str(folder), "me/model", "--revision", "step-10", "--tag", "v1"],
        cwd=REPOSITORY,
        env=environment(double, home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "moments",
    [[("upload", 1), ("upload", 1)], [("batch", 3), ("commit", 0)], [("branch", 0), ("tag", 0)]],
    ids=[
        "in the second file and in the third",
        "before the last file and in the commit",
        "before the branch and before the tag",
    ],
)
def test_a_push_killed_twice_ends_as_if_it_had_not_been(
    moments: list[tuple[str, int]], double: HubWritesDouble, tmp_path: Path
) -> None:
    folder = hf_folder(tmp_path / "step_10", shards=4, megabytes=9)
    assert all(path.stat().st_size > hub.HubBranch.batch_bytes for path in folder.glob("*.safetensors"))  # each by itself
    for kind, number in moments:
        double.faults[kind] = [*[None] * number, HOLD]
        process = start(double, folder, tmp_path)
        assert double.held.wait(60), process.communicate()
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        double.released.set()
        double.held.clear()
        double.released.clear()
    double.log.clear()
    process = start(double, folder, tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "hf_writer" not in out + err
    repository = double.hub.repositories["me/model"]
    assert double.hub.titles("me/model", "step-10") == ["Upload step_10", "initial commit"]
    assert double.hub.arrived == dict.fromkeys(large(folder).values(), 1)
    assert repository.tags == {"v1": repository.branches["step-10"]}
    snapshot_download("me/model", revision="v1", local_dir=tmp_path / "read", endpoint=double.address, token="hf_writer")
    assert contents(tmp_path / "read") == contents(folder)
