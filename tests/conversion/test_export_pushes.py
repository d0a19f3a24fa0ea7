"""export --watch --push: each export once, to a branch of its own, however often the Hub does not answer."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
from exported_runs import add_checkpoint, events, exports, tell
from exporter_process import Exporters
from hf_folders import contents
from hub_writes_double import CUT, hub_writes_double

from conversion import ConversionError, Unreachable, push
from conversion.export_records import RECORDS_NAME
from conversion.upload import flow


class Pushes:
    """Stands for push.push: writes down what was pushed, raises what a test puts into `errors`, a name for each try."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def __call__(self, hf_dir: Path, target: str, options: push.Options) -> push.Pushed:
        tries = len(list(self.folder.iterdir()))
        (self.folder / f"{tries:03d}").write_text(f"{hf_dir.name} {target} {options.revision}")
        error = self.folder.with_name("errors") / f"{tries:03d}"
        if error.exists():
            kind = Unreachable if "not answer" in error.read_text() else ConversionError
            raise kind(error.read_text())
        return push.Pushed(url=f"https://hub/{target}/{options.revision}", commit=f"c{tries}", files=1, bytes=1, changed=True)

    def install(self) -> None:
        push.push = self  # type: ignore[assignment]

    def fail(self, *errors: str) -> None:
        """What becomes of the first tries; empty: they succeed."""
        self.folder.with_name("errors").mkdir()
        for number, error in enumerate(errors):
            if error:
                (self.folder.with_name("errors") / f"{number:03d}").write_text(error)

    @property
    def tried(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.iterdir())]


@pytest.fixture
def pushes(tmp_path: Path) -> Pushes:
    return Pushes(tmp_path / "pushes")


def test_each_export_is_pushed_once_to_a_branch_of_its_own(run: Path, pushes: Pushes, exporter: Exporters) -> None:
    assert exporter("--watch", run, "--once").code == 0  # before anybody thought of pushing
    ran = exporter("--watch", run, "--once", "--push", "org/name", setup=pushes.install)
    assert ran.code == 0 and f"pushed {run / 'hf' / 'step_5'} to https://hub/org/name/warm-up-step-5" in ran.out
    expected = ["step_5 org/name warm-up-step-5", "step_10 org/name stable-step-10"]
    assert pushes.tried == expected
    (line,) = [line for line in (run / "hf" / RECORDS_NAME).read_text().splitlines() if '"pushed", "step": 10' in line]
    record = json.loads(line)
    assert (record["target"], record["revision"], record["commit"]) == ("org/name", "stable-step-10", "c1")
    assert exporter("--watch", run, "--once", "--push", "org/name", setup=pushes.install).code == 0
    assert pushes.tried == expected
    assert exporter("--watch", run, "--once", "--push", "s3://bucket/models/", setup=pushes.install).code == 0  # another place
    assert pushes.tried[2:] == [
        "step_5 s3://bucket/models/warm-up-step-5 None",
        "step_10 s3://bucket/models/stable-step-10 None",
    ]


def test_a_hub_that_does_not_answer_holds_up_no_export(run: Path, pushes: Pushes, exporter: Exporters) -> None:
    pushes.fail("the Hub does not answer", "the Hub does not answer")
    tell(run, "done")
    ran = exporter("--watch", run, "--every", "0.2", "--push", "org/name", setup=pushes.install)
    assert ran.code == 0, ran.err
    assert ran.out.count("is not pushed: the Hub does not answer; tried again in 0 s") == 2
    assert pushes.tried[-2:] == ["step_5 org/name warm-up-step-5", "step_10 org/name stable-step-10"]
    assert pushes.tried[:2] == ["step_5 org/name warm-up-step-5"] * 2
    exported = events(run).index(("exported", 10))
    assert [event for event in events(run)[exported:] if event[0] == "pushed"] == [("pushed", 5), ("pushed", 10)]


def test_with_once_a_push_that_failed_is_told_at_the_end_and_made_the_next_time(
    run: Path, pushes: Pushes, exporter: Exporters
) -> None:
    pushes.fail("the Hub does not answer")
    ran = exporter("--watch", run, "--once", "--push", "org/name", setup=pushes.install)
    assert ran.code == 2 and f"1 not done: {run / 'hf' / 'step_5'} is not pushed: the Hub does not answer\n" in ran.err
    assert exports(run) == ["step_10", "step_5"] and len(pushes.tried) == 1
    assert exporter("--watch", run, "--once", "--push", "org/name", setup=pushes.install).code == 0
    assert len(pushes.tried) == 3


def test_a_push_that_is_refused_is_not_tried_again_by_the_same_exporter(run: Path, pushes: Pushes, exporter: Exporters) -> None:
    pushes.fail("the token may not write to org/name")
    tell(run, "done")
    ran = exporter("--watch", run, "--every", "0.2", "--push", "org/name", setup=pushes.install)
    assert ran.code == 2 and f"{run / 'hf' / 'step_5'} is not pushed: the token may not write to org/name" in ran.err
    assert pushes.tried == ["step_5 org/name warm-up-step-5", "step_10 org/name stable-step-10"]
    assert exporter("--watch", run, "--once", "--push", "org/name", setup=pushes.install).code == 0
    assert pushes.tried[2:] == ["step_5 org/name warm-up-step-5"]


def test_an_export_that_is_made_anew_is_pushed_anew(
    run: Path, smollm3_export: Path, llama_checkpoint: Path, pushes: Pushes, exporter: Exporters
) -> None:
    shutil.copytree(smollm3_export, run / "hf" / "step_7")  # of a checkpoint that is gone, made by hand
    assert exporter("--watch", run, "--once", "--push", "org/name", setup=pushes.install).code == 0
    assert sorted(pushes.tried)[-1] == "step_7 org/name step-7"
    shutil.rmtree(run / "iter_0000010")
    add_checkpoint(llama_checkpoint, run, 10)
    assert exporter("--watch", run, "--once", "--push", "org/name", setup=pushes.install).code == 0
    assert pushes.tried[3:] == ["step_10 org/name stable-step-10"]


def push_to(address: str) -> None:
    """Have this process take a server for the Hub, and a push give up where it would wait."""
    flow.DELAYS = ()
    constants = huggingface_hub.constants
    constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET, constants.ENDPOINT = False, True, address
    os.environ["HF_TOKEN"] = "hf_writer"


def test_exports_arrive_on_a_hub_that_stumbles(
    run: Path, tmp_path: Path, exporter: Exporters, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(run, "done")
    with hub_writes_double(monkeypatch) as double:
        double.faults["refs"] = [CUT, CUT]
        ran = exporter("--watch", run, "--every", "0.2", "--push", "me/model", setup=partial(push_to, double.address))
        assert ran.code == 0 and ran.out.count("is not pushed: ") == 2, ran.err
        for name, branch in (("step_5", "warm-up-step-5"), ("step_10", "stable-step-10")):
            assert double.hub.files("me/model", branch) == contents(run / "hf" / name)
            assert f"pushed {run / 'hf' / name} to {double.address}/me/model/tree/{branch}" in ran.out
        double.log.clear()
        assert exporter("--watch", run, "--once", "--push", "me/model", setup=partial(push_to, double.address)).code == 0
        assert not double.log
