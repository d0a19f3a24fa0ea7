"""The loader's benchmark end to end on a small corpus. Nothing here looks at how fast anything is."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import data_loader, data_loader_report
from benchmarks.data_loader_report import _chi_square, _correlation


def test_table_has_all_loaders_and_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_loader, "STEPS", (2, 3_200_000))
    monkeypatch.setattr(data_loader_report, "WINDOWS", (48_828,))  # the other million takes half a minute
    output = tmp_path / "table.md"
    arguments = ["--tokens", "1000000", "--windows", "16", "--micro-batch", "4", "--repeats", "1"]
    assert data_loader.main([*arguments, "--folder", str(tmp_path), "--output", str(output)]) == 0
    text = output.read_text(encoding="utf8")
    for field in (
        "    python -m benchmarks.data_loader --tokens 1000000",
        "megatron-core 0",
        "| | 2 steps | 3,200,000 steps |",
        "| this repository, through DALI, MB |",
        "| numpy memory map |",
        "| plain pread, bytes only |",
        "| 48,828 |",
    ):
        assert field in text
    assert [line.count("does not fit") for line in text.splitlines() if line.startswith("| Megatron-Core GPTDataset, ")] == [
        1,
        1,
    ]
    assert not list(tmp_path.glob("data_loader_*")), "the corpus is removed"


def test_the_figures_of_the_order_tell_a_bad_shuffle_from_a_good_one() -> None:
    good, none = np.random.default_rng(0).permutation(48_828), np.arange(48_828)
    assert 0.9 < _chi_square(good) < 1.1 < _chi_square(none)
    assert abs(_correlation(good, 1)) < 0.02 < _correlation(none, 1)
