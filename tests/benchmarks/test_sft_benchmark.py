"""The benchmark of fine-tuning, for two steps. Nothing here looks at how fast anything is."""

from pathlib import Path

import pytest

from benchmarks.sft import SIDES, main


@pytest.mark.slow
def test_packing_leaves_less_padding_than_any_side_without(tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    assert main(["--steps", "2", "--repeats", "1", "--output", str(output)]) == 0
    rows = {name: line for line in output.read_text().splitlines() for name in SIDES.values() if line.startswith(f"| {name} |")}
    padding = {name: float(row.split("|")[3]) for name, row in rows.items()}
    packed, unpacked, trl = (padding[name] for name in SIDES.values())
    assert packed < 15 < min(unpacked, trl)
