"""`mixture`: shares, counts and epochs agree with the data order; doubtful weights are named; JSON and a picture."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from document_files import REPOSITORY, Tool
from hypothesis import given, settings
from hypothesis import strategies as st
from token_folders import random_documents, write_dataset

from data_tools.mixture_plan import plan_mixture
from data_tools.run_config import load_data_run
from smol_console import percent, short, table
from smol_data.manifest import read_manifest
from smol_data.order import Order

CATALOGUE = {
    "datasets": {
        "web": {"group": "English web", "repository": "a/web", "text_key": "text", "tokens": 1_000_000},
        "code": {"group": "code", "repository": "a/code", "text_key": "text", "tokens": 40_000, "also": ["code-2"]},
        "secret": {"group": "reasoning", "published": False, "note": "nothing is known"},
    }
}


def write_config(folder: Path, stages: list[dict[str, Any]], **changes: Any) -> Path:
    names = {name for stage in stages for name in stage["weights"]}
    data = {"tokenizer": "org/name", "sequence_length": 64, "stages": stages}
    data["datasets"] = {name: f"${{DATA_ROOT}}/{name}" for name in sorted(names)}
    path = folder / "run.yaml"
    mapping = {"data": data | changes, "train": {"global_batch_size": 8, "output_dir": "${RUN_ROOT}/x"}, "model": {"a": 1}}
    path.write_text(yaml.safe_dump(mapping), encoding="utf8")
    (folder / "catalogue.yaml").write_text(yaml.safe_dump(CATALOGUE), encoding="utf8")
    return path


STAGES = [
    {"name": "one", "steps": 100, "weights": {"web": 3, "code": 1}},
    {"name": "two", "steps": 50, "weights": {"web": 1, "code": 1, "secret": 2, "new": 0}},
]


@pytest.fixture(autouse=True)
def without_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA_ROOT", "RUN_ROOT"):
        monkeypatch.delenv(name, raising=False)


def planned(tool: Tool, *arguments: object) -> dict[str, Any]:
    outcome = tool("mixture", "--config", *arguments, "--json")
    assert outcome.code == 0, outcome
    plan: dict[str, Any] = json.loads(outcome.out)
    return plan


def test_counts_are_those_of_the_data_order(tool: Tool, tmp_path: Path) -> None:
    config = write_config(tmp_path, STAGES)
    plan = planned(tool, config)
    order = Order(load_data_run(config, keep_unset=True).segments(), 0, dict.fromkeys(("web", "code", "secret"), 1000))
    for stage, first, stop in ((plan["stages"][0], 0, 800), (plan["stages"][1], 800, 1200)):
        seen = [place.dataset for place in order.locate_range(first, stop)]
        assert {draw["dataset"]: draw["windows"] for draw in stage["draws"]} == {name: seen.count(name) for name in set(seen)}
        assert stage["tokens"] == len(seen) * 64
    assert [stage["weight_sum"] for stage in plan["stages"]] == [4, 4]
    assert plan["stages"][1]["groups"] == {"reasoning": 0.5, "English web": 0.25, "code": 0.25}
    code = next(dataset for dataset in plan["datasets"] if dataset["name"] == "code")
    assert code["drawn"] == sum(
        draw["tokens"] for stage in plan["stages"] for draw in stage["draws"] if draw["dataset"] == "code"
    )
    assert code["epochs"] == code["drawn"] / 40_000
    assert (code["tokens"], code["tokens_from"], code["group"]) == (40_000, "catalogue", "code")


@given(
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=6), steps=st.lists(st.integers(1, 40), min_size=1, max_size=4)
)
@settings(max_examples=60)
def test_windows_of_a_stage_sum_to_its_samples(
    tmp_path_factory: pytest.TempPathFactory, weights: list[int], steps: list[int]
) -> None:
    named = {f"d{number}": weight for number, weight in enumerate(weights)}
    stages = [{"name": f"s{number}", "steps": count, "weights": named} for number, count in enumerate(steps)]
    plan = plan_mixture(load_data_run(write_config(tmp_path_factory.mktemp("config"), stages), keep_unset=True), None)
    for stage, count in zip(plan.stages, steps, strict=True):
        assert sum(draw.windows for draw in stage.draws) == count * 8
        assert sum(draw.share for draw in stage.draws) == pytest.approx(1)
    assert sum(plan.drawn(name) for name in named) == plan.tokens


def test_a_folder_that_is_there_is_believed_before_the_catalogue(tool: Tool, tmp_path: Path) -> None:
    config = write_config(tmp_path, STAGES)
    tokens = write_dataset(tmp_path / "web", [random_documents(0, 100), random_documents(1, 50)])
    plan = planned(tool, config, f"data.datasets.web={tokens}")
    web = next(dataset for dataset in plan["datasets"] if dataset["name"] == "web")
    assert (web["tokens"], web["tokens_from"]) == (read_manifest(tokens).tokens, "manifest")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{}")
    outcome = tool("mixture", "--config", config, f"data.datasets.web={damaged}")
    assert (outcome.code, "manifest.json is damaged" in outcome.err) == (2, True)


def test_what_is_doubtful_is_named(tool: Tool, tmp_path: Path) -> None:
    tiny = {"name": "three", "steps": 8000, "weights": {"web": 1, "code-2": 1e-4, "none": 1e-9}}
    config = write_config(tmp_path, [*STAGES, tiny])
    plan = planned(tool, config, "data.datasets.code-2=${DATA_ROOT}/code", "data.datasets.spare=x")
    warnings = "\n".join(plan["warnings"])
    assert "gone through more than 4 times in the run: web (4.1); beyond 4 epochs" in warnings
    assert "Muennighoff" in warnings
    (drawn,) = (draw["windows"] for draw in plan["stages"][2]["draws"] if draw["dataset"] == "code-2")
    assert 5 <= drawn <= 8  # 64,000 windows x 0.0001
    rare = f"code-2 0.0001 (one window in {8000 / drawn:,.0f} steps), none 1e-09 (not a single window)"
    assert f"stage three: too small weights: {rare}; raise them or leave the datasets out" in warnings
    assert "code and code-2 are one folder: each name goes through it in an order of its own" in warnings
    assert "not in the catalogue, so of no known group or size: none" in warnings
    assert "in no stage: new, spare" in warnings
    good = planned(tool, write_config(tmp_path, STAGES[:1]), "data.datasets.extra=x")
    assert good["warnings"] == ["in no stage: extra"]
    many = [f"data.datasets.extra{number}=x" for number in range(20)]
    assert planned(tool, config, *many)["warnings"][-1].endswith("extra6, extra7 and 12 more")


def test_tables_name_shares_sums_tokens_and_epochs(tool: Tool, tmp_path: Path) -> None:
    config = write_config(tmp_path, STAGES)
    longer = ("data.stages.0.steps=4000", "data.stages.1.steps=2000")  # so that no window more or less changes a digit
    lines = tool("mixture", "--config", config, *longer).out.splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert {"stage one two", "steps 4,000 2,000", "tokens 2.05M 1.02M", "datasets 2 3", "sum of weights 4 4"} < set(words)
    assert {"English web 75.0 % 25.0 %", "reasoning 0.0 % 50.0 %"} < set(words)
    assert "dataset group holds one tokens epochs two tokens epochs in all epochs" in words
    assert "web English web ~1.00M 75.0 % 1.54M 1.54 25.0 % 256K 0.26 1.79M 1.79" in words
    assert "secret reasoning ? - - - 50.0 % 512K ? 512K ?" in words
    assert "~ from the catalogue, by the makers' own tokenizers; ? not known" in lines


def test_a_stage_may_keep_a_share_of_the_one_before(tool: Tool, tmp_path: Path) -> None:
    anneal = {"name": "anneal", "steps": 10, "keep": 0.4, "weights": {"secret": 1}}
    plan = planned(tool, write_config(tmp_path, [STAGES[0], anneal]))
    shares = {draw["dataset"]: draw["share"] for draw in plan["stages"][1]["draws"]}
    assert shares == pytest.approx({"web": 0.3, "code": 0.1, "secret": 0.6})


@pytest.mark.parametrize(("ending", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_picture_is_written_whole(tool: Tool, tmp_path: Path, ending: str, magic: bytes) -> None:
    picture = tmp_path / f"mixture{ending}"
    outcome = tool("mixture", "--config", write_config(tmp_path, STAGES), "--output", picture)
    assert outcome.code == 0, outcome
    assert outcome.out.endswith(f"written: {picture}\n")
    assert picture.read_bytes().startswith(magic)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalogue.yaml", f"mixture{ending}", "run.yaml"]


def test_a_disk_that_refuses_leaves_no_picture(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def full(self: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    outcome = tool("mixture", "--config", write_config(tmp_path, STAGES), "--output", tmp_path / "m.png")
    assert (outcome.code, "m.png cannot be written: No space left on device" in outcome.err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalogue.yaml", "run.yaml"]


def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    """As `python -m data_tools mixture ... | head -1` does."""
    arguments = [sys.executable, "-m", "data_tools", "mixture", "--config", "configs/smollm3/pretrain.yaml", "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY) as command:
        assert command.stdout and command.stderr
        command.stdout.close()
        assert (command.stderr.read(), command.wait()) == (b"", 141)


def test_bad_input_is_refused_with_one_sentence(tool: Tool, tmp_path: Path) -> None:
    config = write_config(tmp_path, STAGES)
    for arguments, sentence in (
        (("data.stages.0.weights.wep=1",), "stages.0.weights: 'wep' is not in data.datasets; did you mean 'web'?"),
        (("--output", tmp_path / "m.gif"), ".gif is no format to draw in; use .png, .svg, .pdf"),
        (("--output", tmp_path / "m"), "no ending is no format to draw in"),
        (("--output", tmp_path / "none" / "m.png"), "none does not exist; make it first"),
        (("--catalogue", tmp_path / "none.yaml"), "none.yaml cannot be read"),
    ):
        outcome = tool("mixture", "--config", config, *arguments)
        assert (outcome.code, outcome.out, sentence in outcome.err) == (2, "", True), (sentence, outcome)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalogue.yaml", "run.yaml"]


def test_numbers_are_short_and_columns_aligned() -> None:
    counts = [None, 0, 12, 999, 1000, 9_994, 99_940, 999_499, 999_500, 58_600_000_000, 1.3e12, 2.36e13]
    assert " ".join(map(short, counts)) == "? 0 12 999 1.00K 9.99K 99.9K 999K 1.00M 58.6B 1.30T 23.6T"
    shares = (0, 1, 0.728, 0.027, 0.0015, 0.0000448)
    assert ", ".join(map(percent, shares)) == "0.0 %, 100.0 %, 72.8 %, 2.70 %, 0.15 %, 0.0045 %"
    assert table(["name", "n"], [["a", "10"], ["long", "9"]]) == "name   n\na     10\nlong   9"
    assert table(["a", "b"], [["x", ""]], left=2) == "a  b\nx"
