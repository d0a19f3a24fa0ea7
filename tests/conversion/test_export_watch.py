"""export --watch: each whole checkpoint once, by a process that may be killed and started again, and that gives way."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from exported_runs import add_checkpoint, at_first_tensor, events, exports, once, tell
from exporter_process import Exporters
from safetensors.torch import load_file
from small_models import figures
from tiny_runs import QUICKSTART, REPOSITORY

from conversion.export_records import LOCK_NAME, RECORDS_NAME, Records, revision_of
from conversion.watching import is_over

# --- what it does ----------------------------------------------------------------------------------------------------------


def test_every_checkpoint_is_exported_once(run: Path, smollm3_export: Path, exporter: Exporters) -> None:
    (run / "iter_0000015.partial").mkdir()  # being saved
    ran = exporter("--watch", run, "--once")
    assert ran.code == 0, ran.err
    assert exports(run) == ["step_10", "step_5"]
    for name in exports(run):
        assert figures(run / "hf" / name)["passed"]
        assert (run / "hf" / name / "model.safetensors").read_bytes() == (smollm3_export / "model.safetensors").read_bytes()
    assert events(run) == [(event, step) for step in (5, 10) for event in ("exporting", "exported")]
    assert "all checkpoints are exported" in ran.out

    before = {path: path.stat().st_mtime_ns for path in (run / "hf").rglob("*") if path.name != LOCK_NAME}
    assert exporter("--watch", run, "--once").code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (run / "hf").rglob("*") if path.name != LOCK_NAME}


def test_it_ends_by_itself_when_the_run_is_done(run: Path, smollm3_checkpoint: Path, exporter: Exporters) -> None:
    for event in ("started", "spike", "stopped", "resumed", "throughput_drop"):
        tell(run, event)
        assert not is_over(run)
    tell(run, "done")
    tell(run, "save_failed")  # says nothing of the run's course
    assert is_over(run)
    assert exporter("--watch", run, "--every", "0.2").code == 0
    assert exports(run) == ["step_10", "step_5"]
    tell(run, "resumed")  # made longer
    assert not is_over(run)
    (run / "alerts.jsonl").write_text('{"event": "do')
    assert not is_over(run)


def test_the_options_are_those_of_to_hf(run: Path, tmp_path: Path, byte_tokenizer: Path, exporter: Exporters) -> None:
    (tmp_path / "text.txt").write_text("The tide table hangs by the door. " * 20)
    options = ["--dtype", "fp32", "--shard-size", "100KB", "--tokenizer", byte_tokenizer, "--text", tmp_path / "text.txt"]
    shutil.rmtree(run / "iter_0000010")
    assert exporter("--watch", run, "--once", *options).code == 0
    folder = run / "hf" / "step_5"
    assert figures(folder)["dtype"] == "fp32" and "text_perplexity" in figures(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert load_file(next(folder.glob("*.safetensors"))).popitem()[1].dtype == torch.float32


def test_the_branch_is_named_after_stage_and_step(run: Path, smollm3_checkpoint: Path) -> None:
    assert revision_of(run / "iter_0000005") == "warm-up-step-5"
    assert revision_of(run / "iter_0000010") == "stable-step-10"
    assert revision_of(smollm3_checkpoint) == "step-0"  # weights that no stage trained


def test_a_checkpoint_that_is_saved_again_is_exported_again(run: Path, llama_checkpoint: Path, exporter: Exporters) -> None:
    assert exporter("--watch", run, "--once").code == 0
    shutil.rmtree(run / "iter_0000010")  # a rollback
    assert exporter("--watch", run, "--once").code == 0
    assert figures(run / "hf" / "step_10")["dtype"] == "bf16" and len(events(run)) == 4
    add_checkpoint(llama_checkpoint, run, 10)
    ran = exporter("--watch", run, "--once")
    assert ran.code == 0 and f"{run / 'hf' / 'step_10'} is made anew" in ran.out
    assert json.loads((run / "hf" / "step_10" / "config.json").read_text())["model_type"] == "llama"
    assert events(run)[4:] == [("exporting", 10), ("exported", 10)]


def test_an_export_made_by_hand_counts(run: Path, smollm3_export: Path, exporter: Exporters) -> None:
    shutil.copytree(smollm3_export, run / "hf" / "step_5")
    assert exporter("--watch", run, "--once").code == 0
    assert events(run) == [("exporting", 10), ("exported", 10)]


def note_priority(path: Path) -> None:
    me = psutil.Process()
    score = int(Path("/proc/self/oom_score_adj").read_text())
    priority = [me.nice(), int(me.ionice().ioclass), torch.get_num_threads(), score, os.environ["RAYON_NUM_THREADS"]]
    path.write_text(json.dumps(priority))


def test_the_work_gives_way_to_training(run: Path, tmp_path: Path, exporter: Exporters) -> None:
    noted = tmp_path / "priority.json"
    ran = exporter(
        "--watch", run, "--once", "--threads", "2", setup=partial(at_first_tensor, note_priority, noted), gives_way=True
    )
    assert ran.code == 0, ran.err
    assert json.loads(noted.read_text()) == [19, int(psutil.IOPRIO_CLASS_IDLE), 2, 1000, "2"]


# --- as a process of its own -----------------------------------------------------------------------------------------------


def wait_for(path: Path, alive: Callable[[], bool]) -> None:
    """Until a path is there that a process makes."""
    deadline = time.monotonic() + 200
    while not path.exists():
        assert alive() and time.monotonic() < deadline, f"{path} was not made"
        time.sleep(0.05)


def started(run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "conversion", "export", "--watch", str(run), "--every", "0.2"]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_it_waits_for_the_run_and_for_its_checkpoints(smollm3_checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "later" / "run"
    process = started(run)
    try:
        assert process.stdout and f"waiting for {run}" in process.stdout.readline()
        run.mkdir(parents=True)
        assert "exporting the checkpoints of " in process.stdout.readline()
        add_checkpoint(smollm3_checkpoint, run, 7)
        wait_for(run / "hf" / "step_7", lambda: process.poll() is None)
        tell(run, "done")
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0 and output.endswith("all checkpoints are exported\n"), output
    assert figures(run / "hf" / "step_7")["passed"] and events(run) == [("exporting", 7), ("exported", 7)]


def save_the_last(source: Path, run: Path) -> None:
    add_checkpoint(source, run, 15)
    tell(run, "done")


def test_a_checkpoint_that_appears_meanwhile_is_exported_before_the_end(
    run: Path, smollm3_checkpoint: Path, exporter: Exporters
) -> None:
    appears = partial(at_first_tensor, once, run / "mark", save_the_last, smollm3_checkpoint, run)
    assert exporter("--watch", run, "--every", "0.2", setup=appears).code == 0
    assert exports(run) == ["step_10", "step_15", "step_5"]


@pytest.mark.slow
def test_all_checkpoints_of_a_real_run_are_exported_while_it_trains(overrides: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(run)
    settings = [*overrides, "checkpoint.every_steps=4", "checkpoint.keep_last=10"]
    training = [sys.executable, "pretrain_smol.py", "--config", str(QUICKSTART), *settings]
    subprocess.run(training, cwd=REPOSITORY, check=True, capture_output=True, timeout=600)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert exports(run) == ["step_10", "step_4", "step_6", "step_8"]
    assert all(figures(run / "hf" / name)["passed"] for name in exports(run))
    revisions = [export.revision for export in Records(run / "hf").exports.values()]
    assert revisions == ["stable-step-4", "stable-step-6", "decay-step-8", "decay-step-10"]


def signal_my_parent(number: int) -> None:
    os.kill(os.getppid(), number)
    time.sleep(600)  # ended with the parent, long before that


def test_killed_half_way_and_started_again_it_exports_once_and_right(
    run: Path, smollm3_export: Path, exporter: Exporters
) -> None:
    killed = exporter("--watch", run, setup=partial(at_first_tensor, signal_my_parent, signal.SIGKILL))
    assert killed.code == -signal.SIGKILL, killed.err
    assert exports(run) == ["step_5.partial"]
    again = exporter("--watch", run, "--once")
    assert again.code == 0, again.err
    assert f"removed {run / 'hf' / 'step_5.partial'}, which was not finished" in again.out
    assert exports(run) == ["step_10", "step_5"]
    for name in exports(run):
        assert (run / "hf" / name / "model.safetensors").read_bytes() == (smollm3_export / "model.safetensors").read_bytes()
    assert [event for event in events(run) if event[0] == "exported"] == [("exported", 5), ("exported", 10)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_half_way_ends_it_cleanly(run: Path, number: int, exporter: Exporters) -> None:
    ran = exporter("--watch", run, setup=partial(at_first_tensor, signal_my_parent, number))
    assert ran.code == 0 and ran.out.endswith("stopped\n"), ran.err
    assert exports(run) == [] and events(run) == [("exporting", 5)]


def test_a_second_exporter_is_refused_until_the_first_is_killed(run: Path, exporter: Exporters) -> None:
    first = exporter.start("--watch", run, setup=partial(at_first_tensor, time.sleep, 600))
    try:
        wait_for(run / "hf" / "step_5.partial", first.process.is_alive)
        before = (run / "hf" / LOCK_NAME).read_text()
        ran = exporter("--watch", run, "--once")
        assert ran.code == 2 and f"{run / 'hf'} has an exporter already, process {first.process.pid} on " in ran.err
        assert (run / "hf" / LOCK_NAME).read_text() == before and exports(run) == ["step_5.partial"]
    finally:
        first.process.kill()
    assert first.wait().code == -signal.SIGKILL
    assert exporter("--watch", run, "--once").code == 0
    assert exports(run) == ["step_10", "step_5"]


# --- arguments -------------------------------------------------------------------------------------------------------------


def test_arguments_that_suit_no_run_are_refused(run: Path, tmp_path: Path, exporter: Exporters) -> None:
    def refused(sentence: str, *arguments: object) -> None:
        ran = exporter(*arguments)
        assert ran.code == 2 and sentence in ran.err, ran.err

    refused("--watch", "--once")
    refused(f"--watch {tmp_path / 'none'} is not there; give a run's folder", "--watch", tmp_path / "none", "--once")
    refused("is one checkpoint; give its run's folder, or export it with to-hf", "--watch", run / "iter_0000005")
    (tmp_path / "file").touch()
    refused("is not a folder; give a run's folder", "--watch", tmp_path / "file")
    refused("0 must be above 0", "--watch", run, "--every", "0")
    refused("argument --threads: ", "--watch", run, "--threads", "0")
    refused("argument --shard-size: 'five' is not a size", "--watch", run, "--shard-size", "five")
    refused("--text", "--watch", run, "--text", tmp_path / "none.txt")
    refused("name", "--watch", run, "--push", "not/a/name")
    assert exports(run) == [] and not (run / "hf" / RECORDS_NAME).exists()


def test_the_watching_process_itself_loads_no_heavy_library() -> None:
    code = (
        "import sys; from conversion import arguments, export; from conversion.__main__ import main\n"
        "print({'torch', 'transformers', 'huggingface_hub', 'megatron.core'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_the_arguments_hold_every_option_of_to_hf() -> None:
    from conversion import to_hf
    from conversion.arguments import build_parser

    parsed: argparse.Namespace = build_parser().parse_args(["export", "--watch", "run"])
    assert to_hf.Options.of(parsed) == to_hf.Options()
