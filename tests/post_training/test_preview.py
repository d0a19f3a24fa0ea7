"""`preview` shows what is trained, and tells with its exit code whether training would be refused."""

import re
from pathlib import Path
from typing import Any

import pytest
from chats import ASK, answered, sums, write_rows

from post_training.__main__ import main
from smol_config import mapping_to_yaml

MARKED = re.compile("⟦(.*?)⟧", re.DOTALL)


@pytest.fixture
def preview(tmp_path: Path, chat_folder: Path, capsys: Any) -> Any:
    """Runs the command on rows; (exit code, stdout, stderr)."""

    def run(rows: list[dict[str, Any]], *arguments: str, kind: str = "chat", **data: Any) -> tuple[int, str, str]:
        source = {"name": "tides", "path": str(write_rows(tmp_path / "rows.jsonl", rows)), "kind": kind}
        recipe = {"model": str(chat_folder), "data": {"max_length": 256, "sources": [source], **data}}
        # What belongs to the recipe alone is not preview's business.
        (tmp_path / "c.yaml").write_text(mapping_to_yaml({**recipe, "train": {"learning_rate": 1e-5}}))
        code = main(["preview", "--config", str(tmp_path / "c.yaml"), *arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_samples_are_shown_with_what_is_trained(preview: Any) -> None:
    rows = [answered("Why?", "So.", reasoning_content="Hm.")]
    code, out, _ = preview(rows)
    assert code == 0 and MARKED.findall(out) == ["<think>\nHm.\n</think>\nSo.<|im_end|>"]
    assert re.search(r"=== tides: \d+ tokens, \d+ trained ===\n<\|im_start\|>system\n", out)


def test_colours_stand_for_the_marks_on_a_terminal(preview: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _, out, _ = preview([answered("Why?", "So.\x1b[2J")])
    assert "\x1b[30;42mSo.␛[2J<|im_end|>\x1b[0m" in out and "⟦" not in out


def test_pairs_and_prompts_are_shown_too(preview: Any) -> None:
    _, out, _ = preview([{"prompt": "a", "chosen": "b", "rejected": "c"}], kind="preference")
    assert "⟦b<|im_end|>⟧⟪c<|im_end|>⟫" in out
    _, out, _ = preview([{"prompt": "a"}], kind="prompts")
    assert "Reasoning Mode: /think\n" in out and '⟪{"mode": "think", "dataset": "tides"}⟫' in out


def test_the_table_tells_counts_by_dataset_and_mode(preview: Any) -> None:
    rows = [*sums(10), answered("Why?", "So.", reasoning_content="Hm.")]
    _, out, _ = preview(rows, "--samples", "0")
    lines = [line.split() for line in out.splitlines() if line.startswith("tides")]
    assert [line[1:5] for line in lines] == [["think", "1", "1", "1.00"], ["no_think", "10", "10", "1.00"]]


def test_a_few_rows_stand_for_all_of_them(preview: Any, tmp_path: Path) -> None:
    other = str(write_rows(tmp_path / "other.jsonl", sums(10, first=500)))
    sources = [{"name": "tides", "path": str(tmp_path / "rows.jsonl"), "share": 0.5}, {"name": "few", "path": other}]
    code, out, _ = preview(sums(200), "--rows", "5", "--samples", "0", sources=sources)
    found = {line.split()[0]: line.split()[2:5] for line in out.splitlines() if "no_think" in line}
    assert code == 0 and found == {"tides": ["100", "100", "1.00"], "few": ["10", "10", "1.00"]}
    assert "of 5 rows of each source; counts are projected to all rows" in out


def test_all_is_shown_before_the_command_fails(preview: Any) -> None:
    code, out, err = preview([*sums(10), {"messages": [ASK]}])
    assert code == 2 and "REFUSED: no assistant turn: 1 of 11 rows" in out and "⟦It is" in out
    assert "error: training would be refused: 1 of the findings above" in err


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(preview: Any, tmp_path: Path) -> None:
    code, out, _ = preview([answered("<b>Why?</b>", "So & so.")], "--html", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert code == 0 and f"written: {tmp_path}/page.html" in out
    assert "&lt;b&gt;Why?&lt;/b&gt;" in page and '<span class="trained">So &amp; so.&lt;|im_end|&gt;</span>' in page
    assert "http" not in page and "<script" not in page


def test_overrides_win(preview: Any) -> None:
    code, _, err = preview(sums(3), "data.max_length=20")
    assert code == 2 and "training would be refused" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data.max_lenght=20"], "data.max_lenght: unknown key; did you mean 'max_length'"),
        (["--html", "nowhere/page.html"], "the folder nowhere does not exist"),
        (["model=nowhere"], "model=nowhere is not a folder"),
        (["data.sources.0.path=org/none"], "dataset tides: path=org/none is no file or folder here and cannot be fetched"),
    ],
)
def test_bad_input_is_one_sentence(preview: Any, arguments: list[str], sentence: str) -> None:
    code, _, err = preview(sums(3), *arguments)
    assert code == 2 and sentence in err and "Traceback" not in err


def test_help_answers_without_the_large_libraries() -> None:
    import subprocess
    import sys

    loaded = "{'torch', 'transformers', 'datasets', 'trl', 'huggingface_hub'} & set(sys.modules)"
    script = f"import sys; from post_training.__main__ import build_parser; build_parser(); print(sorted({loaded}))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"
