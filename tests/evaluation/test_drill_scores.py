"""Held-out drills: how a response is scored, and the report over the stages of quickstart_chat.sh."""

import json
from pathlib import Path

import pytest

from evaluation.drills import drills
from evaluation.quickstart_chat_report import HOLDS, METRICS, MODES, RISES, STAGES, full_name, main

RIGHT = "The answer is 3."


@pytest.mark.parametrize(
    ("mode", "response", "form", "fits", "right"),
    [
        ("think", f"<think>\n1, 2, 3.\n</think>\n{RIGHT}", 1, 1, 1),
        ("no_think", f"<think>\n1, 2, 3.\n</think>\n{RIGHT}", 1, 0, 1),
        ("no_think", f"<think>\n\n</think>\n{RIGHT}", 1, 1, 1),
        ("think", f"<think>\n\n</think>\n{RIGHT}", 1, 0, 1),
        ("no_think", RIGHT, 1, 1, 1),
        ("think", RIGHT, 1, 0, 1),
        ("no_think", f"1, 2, 3. {RIGHT}", 1, 0, 1),
        ("no_think", "The answer is 4.", 1, 1, 0),
        ("no_think", "The answer is 3. The answer is 4.", 1, 1, 0),
        ("think", f"<think>\n1, 2, 3. {RIGHT}", 0, 1, 0),
        ("think", "<think>\n1, 2, 3.\n</think>\n", 0, 1, 0),
        ("think", f"<think>1</think>{RIGHT}</think>", 0, 1, 0),
        ("think", f"Well. <think>1</think>{RIGHT}", 0, 1, 1),
        ("no_think", "", 0, 1, 0),
        ("no_think", f"{RIGHT} And", 0, 1, 0),
        ("think", "    return self.name", 0, 0, 0),
    ],
)
def test_a_response_is_scored_for_form_mode_and_answer(mode: str, response: str, form: int, fits: int, right: int) -> None:
    found = drills.score({"mode": mode, "answer": "3"}, [response])
    assert (found["form"], found["mode"], found["right"]) == (form, fits, right)
    assert found["reward"] == (form and fits and right)


def test_questions_carry_the_mode_in_which_they_are_asked(tmp_path: Path) -> None:
    path = tmp_path / "held_out.jsonl"
    path.write_text(json.dumps({"question": "How many?", "answer": "2"}) + "\n")
    [row] = drills.questions(questions=str(path), mode="think")["test"]
    assert row == {"question": "How many?", "answer": "2", "mode": "think"}


# --- the report --------------------------------------------------------------------------------------------------------------


def scored(root: Path, shares: dict[str, float], seeds: int = 2, questions: int = 100) -> None:
    """Results in which a stage has that share of every score right."""
    for seed in range(seeds):
        for stage in STAGES[0 if seed == 0 else 1 :]:
            folder = root / f"seed_{seed}" / "scores" / stage if stage != "base" else root / "scores_base"
            (folder / "samples").mkdir(parents=True)
            names = [full_name(f"{mode}/{metric}") for mode in MODES for metric in METRICS]
            record = {"results": dict.fromkeys(names, shares[stage]), "statistics": dict.fromkeys(names, "mean")}
            (folder / "results.json").write_text(json.dumps(record))
            right = [float(number < shares[stage] * questions) for number in range(questions)]
            rows = [
                {"question": n, "question_sha256": f"{n}", "filter": "none", "scores": dict.fromkeys(METRICS, value)}
                for n, value in enumerate(right)
            ]
            for mode in MODES:
                text = "".join(json.dumps(row) + "\n" for row in rows)
                (folder / "samples" / f"drills_{mode}_{mode}.jsonl").write_text(text)


def test_every_stage_that_raises_its_scores_is_told_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored(tmp_path, dict(zip(STAGES, (0.0, 0.2, 0.4, 0.6, 0.8, 0.8), strict=True)))
    assert main([str(tmp_path), "--output", str(tmp_path / "report")]) == 0
    said = capsys.readouterr().out
    assert said.count(" rose") == sum(map(len, RISES.values())) + len(HOLDS["grpo"]) and "DID NOT RISE" not in said
    assert said.count(" held\n") == len(HOLDS["merged"])
    [row] = [line for line in said.splitlines() if line.startswith("think/reward")]
    assert row.split()[1:] == ["0.000", "0.200", "0.400", "0.600", "0.800", "0.800"]
    assert said.split("\n\nwrote")[0] in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_stage_that_does_not_raise_a_score_that_it_should_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored(tmp_path, dict(zip(STAGES, (0.0, 0.2, 0.4, 0.4, 0.8, 0.8), strict=True)))
    assert main([str(tmp_path), "--output", str(tmp_path / "report")]) == 1
    said = capsys.readouterr()
    assert said.out.count("DID NOT RISE") == len(RISES["preference"])
    assert "not as expected, beyond noise: no_think/mode at preference did not rise" in said.err


def test_a_stage_that_loses_a_score_that_it_should_hold_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored(tmp_path, dict(zip(STAGES, (0.0, 0.2, 0.4, 0.6, 0.8, 0.7), strict=True)))
    assert main([str(tmp_path), "--output", str(tmp_path / "report")]) == 1
    said = capsys.readouterr()
    assert said.out.count(" FELL") == len(HOLDS["merged"])
    assert "not as expected, beyond noise: think/form at merged fell" in said.err


def test_what_is_not_finished_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--output", str(tmp_path / "report")]) == 2
    assert "holds no seed_N" in capsys.readouterr().err
    scored(tmp_path, dict.fromkeys(STAGES, 0.5), seeds=1)
    (tmp_path / "seed_0" / "scores" / "grpo" / "results.json").unlink()
    assert main([str(tmp_path), "--output", str(tmp_path / "report")]) == 2
    assert "scores/grpo has no results.json; let `bash quickstart_chat.sh` finish" in capsys.readouterr().err
    assert not (tmp_path / "report.md").exists()
