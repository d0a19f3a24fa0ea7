"""`compare`: tables, file and picture of models side by side; what it warns of; what it refuses."""

import json
from pathlib import Path

import pytest
from evaluation_parts import NAME, result

from evaluation.__main__ import main


def scored(folder: Path, share: float, step: int = 100, **changes: object) -> str:
    """A result in which that share of 200 questions was right; `changes` of its record."""
    path = result(folder, step, {NAME: share}, [1.0] * int(200 * share) + [0.0] * int(200 * (1 - share)))
    record = json.loads((path / "results.json").read_text()) | changes
    (path / "results.json").write_text(json.dumps(record))
    return str(path)


def test_models_are_set_side_by_side_with_their_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = [f"base={scored(tmp_path / f'base{seed}', 0.5)}" for seed in range(2)]
    others = [f"wide={scored(tmp_path / 'wide', 0.75)}", f"deep={scored(tmp_path / 'deep', 0.5)}"]
    assert main(["compare", *base, *others, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "wide less base, 95 %" in said.out and "deep less base, 95 %" in said.out and not said.err
    [wide, deep] = [line.split() for line in said.out.splitlines() if line.startswith(NAME)]
    assert wide[1:3] == ["0.5000", "0.7500"] and wide[6:] == ["better", "62", "%", "200"]
    assert deep[1:3] == ["0.5000", "0.5000"] and deep[6:] == ["same", "50", "%", "200"]
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert written["first"] == "base" and len(written["models"]["base"]) == 2
    found = written["differences"]["wide"][NAME]
    assert found["it is"] == "better" and found["first"] == 0.5 and found["other"] == 0.75
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_a_stable_checkpoint_beside_a_decayed_one_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stable = scored(tmp_path / "a", 0.5, step=4000, learning_rate_share=1.0)
    decayed = scored(tmp_path / "b", 0.75, learning_rate_share=0.02)
    assert main(["compare", f"long={stable}", f"short={decayed}", "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "warning: long was at its peak learning rate and short was decayed" in said
    assert "branch a decay off step 4,000 of long, as configs/examples/decay_branch.yaml" in said
    other = scored(tmp_path / "c", 0.75, learning_rate_share=1.0)
    assert main(["compare", f"long={stable}", f"short={other}", "--output", str(tmp_path / "out2")]) == 0
    assert not capsys.readouterr().err


def test_other_prompts_other_versions_and_other_engines_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = scored(tmp_path / "a", 0.5)
    other = {"tasks": {"task": {"prompts_sha256": "others"}}, "versions": {"lm_eval": "0.5"}, "engine": {"name": "server"}}
    two = scored(tmp_path / "b", 0.5, **other)
    assert main(["compare", f"a={one}", f"b={two}", "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "a and b were not asked with the same words" in said
    assert "a and b were scored with other versions of lm_eval" in said
    assert "a and b were answered by server and transformers, which round apart; take one" in said


def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(sentence: str, *given: str, output: Path = tmp_path / "out") -> None:
        assert main(["compare", *given, "--output", str(output)]) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()

    one, two = scored(tmp_path / "a", 0.5), scored(tmp_path / "b", 0.5)
    refused("only a is given; name two models", f"a={one}", f"a={two}")
    refused("results.json cannot be read", f"a={one}", f"b={tmp_path / 'nowhere'}")
    refused("is there already; give a new folder", f"a={one}", f"b={two}", output=tmp_path)
    bare = result(tmp_path / "c", 1, {NAME: 0.5})
    refused("a and c have no question of a score in common; score both with the same suite", f"a={one}", f"c={bare}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
