"""A run's life: killed, signalled, stopped, gone on with; what it leaves on disk."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from recipe_kit import metrics, run, without_times, write_config
from safetensors.numpy import load_file

import smol_progress
from post_training.recipes import exit_codes
from post_training.recipes.checkpoints import remove_old, tokens_of, whole_checkpoints
from post_training.recipes.config import RECIPES
from smol_config import load

STEPS = {"train": {"steps": 10, "epochs": None}, "checkpoint": {"every_steps": 4, "keep_last": 3}}
"""Two samples a step of 48 unpacked ones: all within an epoch."""
WARM_UP = {"warmup_share": 0.2, "min_share": 0.1}


def changes(**more: Any) -> dict[str, Any]:
    return {"data": {"packing": False}, "optim": {"schedule": WARM_UP}, **STEPS, **more}


@pytest.fixture(scope="module")
def whole(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert run("sft", write_config(folder, "sft", chat_folder, changes())) == 0
    return folder / "run"


def assert_same_end(run_folder: Path, whole: Path) -> None:
    """Weights, optimizer, scheduler and metrics are bit for bit those of the undisturbed run."""
    import torch

    here, there = (folder / "iter_0000010" for folder in (run_folder, whole))
    weights, expected = (load_file(folder / "model.safetensors") for folder in (here, there))
    assert weights.keys() == expected.keys() and all((weights[name] == expected[name]).all() for name in weights)
    state, wanted = (torch.load(folder / "optimizer.pt")["state"] for folder in (here, there))
    assert all(torch.equal(state[key][name], wanted[key][name]) for key in wanted for name in wanted[key])
    assert without_times(metrics(run_folder)) == without_times(metrics(whole))
    assert (run_folder / "hf/step_10/model.safetensors").read_bytes() == (whole / "hf/step_10/model.safetensors").read_bytes()


def when(condition: Callable[[], bool], then: Callable[[], Any]) -> threading.Thread:
    """Calls `then` from a thread once `condition` holds."""

    def wait() -> None:
        while not condition():
            time.sleep(0.005)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def lines(run_folder: Path) -> int:
    path = run_folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def told(run_folder: Path) -> list[tuple[str, str]]:
    """The events of a run with their text."""
    alerts = [json.loads(line) for line in (run_folder / "alerts.jsonl").read_text().splitlines()]
    return [(alert["event"], alert["text"]) for alert in alerts]


# --- what is left on disk ----------------------------------------------------------------------------------------------------


def test_checkpoints_are_named_and_marked_as_pre_trainings(whole: Path) -> None:
    from smol_train import checkpoint_folder

    assert [path.name for path in checkpoint_folder.whole_checkpoints(whole)] == [
        "iter_0000004",
        "iter_0000008",
        "iter_0000010",
    ]
    assert json.loads((whole / "iter_0000010/state.json").read_text())["step"] == 10
    assert not list(whole.glob("checkpoint-*"))


def test_each_checkpoint_is_a_model_that_plain_transformers_loads(whole: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert sorted(path.name for path in (whole / "hf").iterdir()) == ["step_10", "step_4", "step_8"]
    model = AutoModelForCausalLM.from_pretrained(whole / "hf/step_10")
    tokenizer = AutoTokenizer.from_pretrained(whole / "hf/step_10")
    assert model.config.eos_token_id == tokenizer.eos_token_id and "generation" in tokenizer.chat_template
    weights = load_file(whole / "iter_0000010/model.safetensors")
    assert (model.model.norm.weight.detach().numpy() == weights["model.norm.weight"]).all()


def test_each_model_says_how_far_its_training_had_come(whole: Path) -> None:
    rates = {line["step"]: line["train/learning_rate"] for line in metrics(whole)}
    for step in (4, 8, 10):
        tokens, share = tokens_of(whole / f"iter_{step:07d}"), rates[step] / max(rates[s] for s in rates if s <= step)
        assert smol_progress.read(whole / "hf" / f"step_{step}") == (step, tokens, pytest.approx(share))


def test_each_model_has_a_card_of_its_own_step(whole: Path) -> None:
    for step in (4, 8, 10):
        card = (whole / "hf" / f"step_{step}" / "README.md").read_text()
        tokens = tokens_of(whole / f"iter_{step:07d}")
        assert f"# run, step {step}" in card and f"| tokens of the model's input | {tokens:,} |" in card


def test_tensorboard_has_what_metrics_jsonl_has(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(whole / "tensorboard")).Reload()
    for name in ("train/loss", "train/grad_norm", "train/learning_rate", "perf/tokens_per_second"):
        drawn = [(event.step, event.value) for event in board.Scalars(name)]
        assert drawn == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in metrics(whole)]


def test_tokens_are_those_of_the_rows_without_padding(whole: Path) -> None:
    from datasets import Dataset

    lengths = [len(row["input_ids"]) for row in Dataset.from_file(str(whole / "data/train.arrow"))]
    counts = [line["tokens"] for line in metrics(whole)]
    steps = [after - before for before, after in zip([0, *counts], counts, strict=False)]
    assert all(2 * min(lengths) <= step <= 2 * max(lengths) for step in steps)
    assert tokens_of(whole / "iter_0000010") == counts[-1]


def test_only_the_newest_whole_checkpoints_are_kept_and_none_is_taken_that_is_damaged(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "run"))
    weights = copy / "iter_0000010/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (copy / "iter_0000008/COMPLETE").unlink()
    assert [path.name for path in whole_checkpoints(copy)] == ["iter_0000004"]
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    remove_old(again, keep_last=2)
    assert [path.name for path in sorted(again.glob("iter_*"))] == ["iter_0000008", "iter_0000010"]


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_the_learning_rate_warms_up_and_then_falls_as_its_kind_says(
    kind: str, whole: Path, chat_folder: Path, tmp_path: Path
) -> None:
    if kind == "cosine":  # as by default
        rates = [line["train/learning_rate"] for line in metrics(whole)]
    else:
        rates = planned_rates(write_config(tmp_path, "sft", chat_folder, changes(optim={"schedule": WARM_UP | {"kind": kind}})))
    left = {
        "cosine": lambda share: 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2,
        "linear": lambda share: 1 - share,
        "constant": lambda share: 1,
    }[kind]
    expected = [1e-3 * (step / 2 if step < 2 else left((step - 2) / 8)) for step in range(10)]
    assert rates == [pytest.approx(rate, rel=1e-6) for rate in expected]


def planned_rates(config: Path) -> list[float]:
    """The learning rates of ten steps, from transformers' own trainer of the run's arguments."""
    import torch
    from transformers import Trainer

    from post_training.recipes.arguments import training_arguments

    trainer = Trainer(torch.nn.Linear(2, 2), training_arguments(load(RECIPES["sft"], config)))
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    found = []
    for _ in range(10):
        found += trainer.lr_scheduler.get_last_lr()[:1]
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return found


# --- interrupted, and gone on with -------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[tuple[dict[str, str], list[str]]]:
    """An environment in which the Hub is a server here, online; and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_error(404)

        do_GET = do_POST = do_HEAD

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    silent = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI")
    kept = {name: value for name, value in os.environ.items() if name not in silent}
    yield kept | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}, asked
    server.shutdown()
    server.server_close()


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(
    whole: Path, chat_folder: Path, tmp_path: Path, hub: tuple[dict[str, str], list[str]]
) -> None:
    """And, online as it was, it told the Hub nothing: TRL reports each trainer."""
    environment, asked = hub
    config = write_config(tmp_path, "sft", chat_folder, changes())
    command = [sys.executable, "-m", "post_training", "sft", "--config", str(config)]
    process = subprocess.Popen(command, env=environment)
    when(lambda: lines(tmp_path / "run") >= 5 or process.poll() is not None, process.kill).join(300)
    assert process.wait(60) == -signal.SIGKILL
    assert not asked
    assert whole_checkpoints(tmp_path / "run")[-1].name == "iter_0000004"
    (tmp_path / "run/checkpoint-8").mkdir(exist_ok=True)  # as a kill in the middle of a save leaves it
    assert run("sft", config) == 0
    assert_same_end(tmp_path / "run", whole)
    assert [line["step"] for line in metrics(tmp_path / "run", "metrics_lost.jsonl")][:1] == [5]
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("heard", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_and_asks_to_be_started_again(
    heard: signal.Signals, whole: Path, chat_folder: Path, tmp_path: Path
) -> None:
    config, folder = write_config(tmp_path, "sft", chat_folder, changes()), tmp_path / "run"
    handler = signal.getsignal(heard)
    sender = when(lambda: lines(folder) >= 1, lambda: os.kill(os.getpid(), heard))
    assert run("sft", config) == exit_codes.REQUEUE
    sender.join()
    step = metrics(folder)[-1]["step"]
    assert whole_checkpoints(folder)[-1].name == f"iter_{step:07d}" and 1 < step < 10
    assert step % 4 == 0 or not (folder / f"hf/step_{step}").exists()  # there is no time for a model
    assert signal.getsignal(heard) == handler
    assert told(folder)[-1] == ("stopped", f"at step {step} of 10, saved; exit code 85")
    assert run("sft", config) == 0
    assert_same_end(folder, whole)
    assert [event for event, _ in told(folder)] == ["started", "stopped", "resumed", "done"]


def test_a_signal_while_the_data_is_prepared_asks_to_be_started_again(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from post_training.recipes import ranks

    monkeypatch.setattr(ranks, "prepare", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(SystemExit) as ended:
        run("sft", write_config(tmp_path, "sft", chat_folder, changes()))
    assert ended.value.code == exit_codes.REQUEUE


def test_the_stop_file_saves_and_asks_not_to_be_started_again(chat_folder: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, "sft", chat_folder, changes())
    (tmp_path / "run").mkdir()
    (tmp_path / "run/stop").touch()
    assert run("sft", config) == exit_codes.REFUSED
    assert [path.name for path in whole_checkpoints(tmp_path / "run")] == ["iter_0000001"]
    assert not (tmp_path / "run/stop").exists()
    assert told(tmp_path / "run")[-1] == ("stopped", "at step 1 of 10, saved; exit code 93")


def test_a_finished_run_given_again_changes_nothing(whole: Path, chat_folder: Path, tmp_path: Path) -> None:
    write_config(tmp_path, "sft", chat_folder, changes())
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/hf/step_10")  # a kill between the last checkpoint and its model
    assert run("sft", tmp_path / "sft.yaml") == 0
    assert_same_end(tmp_path / "run", whole)
    assert told(tmp_path / "run") == [("started", "step 0 of 10 on 1 ranks"), *[("done", "10 steps")] * 2]


def test_a_run_that_ends_by_a_fault_says_which(chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("sft", write_config(tmp_path, "sft", chat_folder, changes()), "optim.learning_rate=1e30") == exit_codes.REFUSED
    assert [event for event, _ in told(tmp_path / "run")] == ["started", "diverged"]
    assert told(tmp_path / "run")[-1][1].startswith("Diverged: step ") and "nan" in told(tmp_path / "run")[-1][1]

    from post_training.recipes import checkpoints

    monkeypatch.setattr(checkpoints, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("sft", write_config(tmp_path / "again", "sft", chat_folder, changes()))
    assert told(tmp_path / "again/run")[-1] == ("crashed", "ZeroDivisionError: division by zero")


def test_the_numbers_are_those_of_pre_training() -> None:
    from smol_train import exit_codes as theirs

    assert (exit_codes.DONE, exit_codes.REQUEUE, exit_codes.REFUSED) == (theirs.DONE, theirs.REQUEUE, theirs.REFUSED)
