"""The scaling benchmark: which layouts it times, what it expects of them, and a table of real runs. Nothing here looks at how
fast anything is."""

from pathlib import Path

import pytest
from tiny_runs import QUICKSTART

from benchmarks.scaling import Case, cases, draw, main, render
from smol_config import UserError, load
from smol_train.config import RunConfig
from smol_train.search import apply


@pytest.fixture
def config(overrides: list[str]) -> RunConfig:
    """8 windows in rows of 2, 4 layers, 2 key-value heads."""
    return load(RunConfig, QUICKSTART, [*overrides, "train.precision=bf16"])


def found(config: RunConfig, *ranks: int, kinds: tuple[str, ...] = ("data", "tensor", "pipeline", "interleaved")) -> list[Case]:
    return cases(config, ranks, kinds, None)


def test_every_layout_that_divides_is_timed_strong_and_weak_after_one_rank(config: RunConfig) -> None:
    timed = [(case.scaling, case.kind, case.ranks, case.layout.micro_batches) for case in found(config, 1, 2, 4)]
    assert timed == [
        ("strong", "one rank", 1, 4),
        *[("strong", "data", 2, 2), ("strong", "tensor", 2, 4), ("strong", "pipeline", 2, 4), ("strong", "interleaved", 2, 4)],
        *[("strong", "data", 4, 1), ("strong", "pipeline", 4, 4)],  # two key-value heads, four layers
        *[("weak", "data", 2, 4), ("weak", "tensor", 2, 8), ("weak", "pipeline", 2, 8), ("weak", "interleaved", 2, 8)],
        *[("weak", "data", 4, 4), ("weak", "pipeline", 4, 16)],
    ]
    for case in found(config, 1, 2, 4):
        assert apply(case.config, case.layout).problems() == []
        assert case.config.train.global_batch_size == 8 * (case.ranks if case.scaling == "weak" else 1)


def test_on_cores_the_pipeline_s_bubble_is_expected_and_no_more_than_the_cores(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    expected = {(case.scaling, case.kind, case.ranks): case.expected for case in found(config, 1, 2, 4)}
    assert expected["strong", "one rank", 1] == expected["strong", "data", 2] == expected["weak", "tensor", 2] == 1
    assert expected["strong", "pipeline", 2] == pytest.approx(4 / 5)
    assert expected["strong", "interleaved", 2] == pytest.approx(8 / 9)
    assert expected["weak", "pipeline", 2] == pytest.approx(8 / 9)
    assert expected["strong", "data", 4] == pytest.approx(1 / 2)


def test_on_gpus_the_throughput_model_is_expected(config: RunConfig) -> None:
    one, tensor, *_ = cases(config, [1, 2], ["tensor"], "h100")
    assert one.expected == 1
    assert 0 < tensor.expected < 1


def test_the_table_has_a_line_for_each_layout_with_its_spread(config: RunConfig, tmp_path: Path) -> None:
    timed = found(config, 1, 2, kinds=("data",))
    for case, rates in zip(timed, ([100.0, 90.0, 110.0], [80.0, 70.0, 90.0], [50.0, 60.0, 40.0]), strict=True):
        case.rates = rates
    text = render(timed, ["--ranks", "1", "2"], None, 0.5, "picture.png")
    assert "    python -m benchmarks.scaling --ranks 1 2\n" in text
    assert "| strong | data | 2 | 2 | 160 | 80 (70 to 90) | 80% (70% to 90%) | 100% |" in text
    assert "| weak | data | 2 | 4 | 100 | 50 (40 to 60) | 50% (40% to 60%) | 100% |" in text
    assert "busy" not in text and "busy" in render(timed, [], None, 99.0, "picture.png")
    draw(timed, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_without_one_rank_to_compare_with_nothing_is_measured(config: RunConfig) -> None:
    with pytest.raises(UserError, match=r"--ranks \[2\]: give 1 first, to which the others are compared"):
        found(config, 2)


def test_a_run_that_fails_is_named_with_what_it_said(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    absent = [f"data.datasets.{name}=/nowhere/{name}" for name in ("code", "docs")]
    assert main(["--config", str(QUICKSTART), "--ranks", "1", "--repeats", "1", *overrides, *absent]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: strong, one rank, 1 ranks: ") and "/nowhere/" in error


@pytest.mark.slow
def test_real_ranks_are_timed(overrides: list[str], tmp_path: Path) -> None:
    output = tmp_path / "scaling.md"
    command = ["--config", str(QUICKSTART), "--synthetic", "--ranks", "1", "2", "--kinds", "interleaved", "--repeats", "1"]
    assert main([*command, "--output", str(output), *overrides]) == 0
    rows = [line for line in output.read_text(encoding="utf8").splitlines() if line.startswith(("| strong", "| weak"))]
    assert [row.split(" | ")[1] for row in rows] == ["one rank", "interleaved", "interleaved"]
    assert all(float(row.split(" | ")[5].replace(",", "")) > 0 for row in rows)
    assert (tmp_path / "scaling.png").is_file()
