"""The training-step benchmark end to end on a tiny model. Nothing here looks at how fast anything is."""

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import QUICKSTART

from benchmarks.synthetic_tokens import MEAN_TOKENS, write_dataset
from benchmarks.train_step import _check_same_start, main
from benchmarks.train_step_job import Measurement
from smol_config import UserError
from smol_data.shards import TokenDataset

SHORT = ["--config", str(QUICKSTART), "--steps", "2", "--warmup", "1", "--repeats", "1", "--threads", "1"]


def number(text: str, pattern: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in\n{text}"
    return float(found[1].replace(",", ""))


def test_table_has_both_sides_and_their_losses_agree(overrides: list[str], tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    # fp32, and our attention sees whole windows as the peer's does: what is left is rounding.
    assert main([*SHORT, "--output", str(output), *overrides, "data.document_mask=false"]) == 0
    text = output.read_text(encoding="utf8")
    for field in (
        "    python -m benchmarks.train_step --config",
        "torch 2",
        "megatron-core 0",
        "transformers 5",
        "nvidia-dali-cuda130",
        "sequence length 64, 512 tokens a step in micro-batches of 2 windows, precision fp32",
        "2 steps timed after 1 of warm-up",
        "this repository, torch backend | transformers, sdpa attention",
        "| data wait, s |",
        "| forward and backward, s |",
        "| optimizer (with clipping), s |",
        "| callbacks and the loop, s |",
        "| outside forward, backward, optimizer |",
        "| model FLOPs utilization | peak not known | peak not known |",
        "without document isolation",
    ):
        assert field in text
    for side in (1, 2):
        assert number(text, r"\*\*tokens/s\*\*" + r" \| \*\*([\d,]+)\*\*" * side) > 0
    assert number(text, r"Ratio ours / peer: \*\*([\d.]+)\*\*") > 0
    assert number(text, r"losses differ by ([\d.e+-]+) at step 1") < 1e-5
    assert number(text, r"at step 1 and by ([\d.e+-]+) at step 3") < 1e-4


def test_synthetic_tokens_stand_in_for_absent_data(overrides: list[str], tmp_path: Path) -> None:
    """The configuration's own folders are not there, and our side is measured alone."""
    output = tmp_path / "table.md"
    absent = [f"data.datasets.{name}=/nowhere/{name}" for name in ("code", "docs")]
    assert main([*SHORT, "--peer", "none", "--synthetic", "--output", str(output), *overrides, *absent]) == 0
    text = output.read_text(encoding="utf8")
    assert number(text, r"\| loss of step 1 \| ([\d.]+)") == pytest.approx(np.log(1024), abs=0.1)
    assert "Ratio" not in text


def test_synthetic_dataset_is_a_dataset(tmp_path: Path) -> None:
    write_dataset(tmp_path / "tokens", tokens=200_001, vocab_size=100_000, tokenizer="synthetic")
    dataset = TokenDataset(tmp_path / "tokens", sequence_length=4096)
    assert dataset.num_tokens == 200_001
    assert dataset.manifest.dtype == "uint32"
    window = dataset.window(0)
    assert window.tokens.max() == 99_999  # the end of a document
    assert (window.tokens[window.document_ends - 1] == 99_999).all()
    assert MEAN_TOKENS / 2 < dataset.num_tokens / dataset.manifest.documents < MEAN_TOKENS * 2


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["data.stages.0.steps=1", "data.stages.1.steps=1", "optim.schedule.warmup_steps=0"], "optim.schedule"),
        (["--steps", "10"], "--warmup 1 and --steps 10 are more than the 10 steps"),
        (["model.z_loss=0.001"], "model.z_loss=0.001: transformers has no z-loss"),
        (["model.qk_norm=true"], "model.qk_norm=true"),
        (["data.datasets.code=/nowhere"], "/nowhere/manifest.json cannot be read"),
    ],
)
def test_bad_input_exits_2_and_writes_nothing(
    extra: list[str], message: str, overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "table.md"
    assert main([*SHORT, "--output", str(output), *overrides, *extra]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("theirs", [6.0, float("nan")])
def test_sides_that_start_apart_are_refused(theirs: float) -> None:
    with pytest.raises(UserError, match="first losses differ"):
        _check_same_start([Measurement(losses=[6.93])], [Measurement(losses=[theirs])])
