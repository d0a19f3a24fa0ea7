"""The conversion benchmark end to end on a small model. Nothing here looks at how fast anything is."""

import re
from pathlib import Path

import pytest

from benchmarks.conversion import main

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_the_sides_convert_the_same_model_and_all_rows_are_filled(tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    arguments = ["--model", str(REPOSITORY / "configs/models/tiny.yaml"), "--work", str(tmp_path), "--repeats", "1"]
    assert main([*arguments, "--output", str(output)]) == 0
    text = output.read_text(encoding="utf8")
    assert "1,311,872 parameters" in text and "python -m benchmarks.conversion --model" in text
    rows = [line for line in text.splitlines() if re.match(r"\| (?!---)\S.*\d", line)]
    assert len(rows) == 12 and not re.search(r"\| (nan|inf|-)", "".join(rows))
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"], "what was made for it is gone"


def test_a_model_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml" in capsys.readouterr().err
