"""The scaling table on paper: what is written down is what the model gives, and it stays within its stated errors."""

from pathlib import Path

import pytest
from tiny_runs import REPOSITORY

from benchmarks.scaling_model import SIZES, main, predict, strong, tensor_ratios, weak
from benchmarks.scaling_published import PUBLISHED, ULTRASCALE, Published

RESULTS = REPOSITORY / "docs" / "results"


def test_the_recorded_table_is_what_the_command_writes(tmp_path: Path) -> None:
    assert main(["--output", str(tmp_path / "scaling_paper.md")]) == 0
    written = (tmp_path / "scaling_paper.md").read_text(encoding="utf8")
    assert written == (RESULTS / "scaling_paper.md").read_text(encoding="utf8"), "run python -m benchmarks.scaling_model"
    assert (tmp_path / "scaling_paper.png").stat().st_size > 10_000
    assert (RESULTS / "scaling_paper.png").is_file()


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.name} on {row.gpus}")
def test_published_runs_lie_between_the_calibrated_model_and_the_formulas_alone(row: Published) -> None:
    rate = row.tokens_per_second_per_gpu
    assert 0.7 * rate < predict(row) < rate < predict(row, kernel_share=1.0)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("MPT-760M", 760e6), ("MPT-1B", 1.316e9), ("MPT-3B", 2.65e9), ("MPT-7B", 6.66e9), ("Llama3.1-8B", 8.03e9)],
)
def test_the_published_models_have_their_published_sizes(name: str, parameters: float) -> None:
    rows = [row for row in PUBLISHED if row.name.startswith(name)]
    assert rows
    assert all(row.config().model.parameters == pytest.approx(parameters, rel=0.01) for row in rows)


def test_tensor_parallelism_costs_more_the_wider_it_is_and_most_across_nodes() -> None:
    ratios = tensor_ratios()
    assert list(ratios) == list(ULTRASCALE)
    assert list(ratios.values()) == sorted(ratios.values(), reverse=True)
    assert ratios[8] - ratios[16] > ratios[4] - ratios[8] > ratios[2] - ratios[4] > 0


def test_every_size_shares_the_batch_evenly_and_more_gpus_are_never_more_efficient_at_one_batch() -> None:
    assert all(576 % (3 * gpus // 2) == 0 for gpus in SIZES)
    rates = [strong(gpus).tokens_per_second_per_gpu for gpus in SIZES]
    assert rates == sorted(rates, reverse=True)
    assert all(weak(gpus, "parallel.overlap=false").total > weak(gpus).total for gpus in SIZES)
