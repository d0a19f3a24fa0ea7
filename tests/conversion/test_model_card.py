"""The model card: metadata that the Hub reads, and tables that tell what was really trained, run by run and stage by stage."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from huggingface_hub import ModelCard, ModelCardData
from ranks import Ranks
from small_models import SMOLLM3, Command
from tiny_runs import QUICKSTART, tiny_overrides

import pretrain_smol
import smol_progress
from conversion import families, training_record
from conversion.model_card import Exported, _schedule, model_card, table
from conversion.training_record import Record, hub_name, read_record, tokens_by_dataset
from smol_data.order import dataset_positions, history_of
from smol_train.checkpoint_folder import read_state
from smol_train.sections.optim import OptimConfig, ScheduleConfig

WINDOW, BATCH = 64, 8


@dataclass(frozen=True)
class Runs:
    """A run of two stages, 6 and 4 steps, and one of 3 steps that started from its weights; their folders."""

    first: Path
    second: Path


@pytest.fixture(scope="module")
def runs(ranks: Ranks, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(corpus / "tokens", root / "tokens")
    for name in ("code", "docs"):
        source = {"repository": f"someone/{name}" if name == "code" else None, "files": ["*.parquet"]}
        (root / "tokens" / f"{name}.source.json").write_text(json.dumps(source))
    tiny = [setting.replace(str(corpus / "tokens"), str(root / "tokens")) for setting in tiny_overrides(corpus, root / "short")]
    own = ["checkpoint.keep_last=9", "checkpoint.every_steps=3", "evaluation.every_steps=4"]
    run(ranks, *tiny, *own)
    start = f"start_from={{checkpoint: {root / 'short'}, optimizer: false, data_position: false}}"
    stages = "data.stages=[{name: long, steps: 3, weights: {docs: 3, code: 0}}]"
    longer = [
        "data.sequence_length=128",
        "optim.schedule={kind: cosine, warmup_steps: 1, decay_steps: 0}",
        "model.rope_theta=1e6",
    ]
    lists = ("data.stages.", "optim.schedule.", "train.output_dir")
    run(ranks, *(s for s in tiny if not s.startswith(lists)), start, stages, *longer, f"train.output_dir={root / 'long'}")
    return Runs(root / "short", root / "long")


def run(ranks: Ranks, *overrides: str) -> None:
    assert ranks.run(pretrain_smol.train, 1, config_path=str(QUICKSTART), overrides=list(overrides)) == [0]


def card_of(command: Command, checkpoint: Path, target: Path, *options: str) -> str:
    ran = command("to-hf", checkpoint, target, *options)
    assert ran.code == 0, ran.err
    return (target / "README.md").read_text()


def rows(card: str, first_title: str) -> list[list[str]]:
    """The body of the table whose first column has this title."""
    lines = card.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_title} |"))
    body = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        body.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return body


def test_metadata_is_what_the_hub_reads(runs: Runs, tmp_path: Path, command: Command) -> None:
    card_of(command, runs.first, tmp_path / "hf", "--license", "apache-2.0")
    card = ModelCard.load(tmp_path / "hf" / "README.md")
    assert isinstance(card.data, ModelCardData)
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "datasets": ["someone/code"],
        "tags": ["smollm3", "megatron-core", "pretraining"],
    }
    assert "license" not in ModelCard.load(card_file(command, runs.first, tmp_path / "without")).data.to_dict()


def card_file(command: Command, checkpoint: Path, target: Path) -> Path:
    card_of(command, checkpoint, target)
    return target / "README.md"


def test_a_license_that_is_no_identifier_is_refused(runs: Runs, tmp_path: Path, command: Command) -> None:
    ran = command("to-hf", runs.first, tmp_path / "hf", "--license", "Apache 2.0")
    assert ran.code == 2 and "--license 'Apache 2.0' is not an identifier of the Hub; write one such as apache-2.0" in ran.err
    assert not list(tmp_path.iterdir())


def test_a_run_of_two_stages_is_told_stage_by_stage(runs: Runs, tmp_path: Path, command: Command) -> None:
    card = card_of(command, runs.first, tmp_path / "hf")
    assert "trained with Megatron-Core from random weights" in card and "5,120 tokens; step 10." in card
    assert rows(card, "Run") == [
        ["short", "stable", "6", "3,072", "64", "8", "50,000"],
        ["short", "decay", "4", "2,048", "64", "8", "50,000"],
    ]
    shares = {re.sub(r"\[(\w+)\]\(.*\)", r"\1", row[0]): row[1:] for row in rows(card, "Dataset")}
    positions = dataset_positions(history_of(read_state(runs.first / "iter_0000010").data))
    assert shares == {
        "code": ["75.0 %", "90.0 %", f"{positions['code'] * WINDOW:,}"],
        "docs": ["25.0 %", "10.0 %", f"{positions['docs'] * WINDOW:,}"],
    }
    assert sum(positions.values()) == 10 * BATCH
    assert "[code](https://huggingface.co/datasets/someone/code)" in card and "[docs]" not in card
    assert "adamw, betas 0.9 and 0.95, weight decay 0.1, gradient norm clipped at 1" in card
    assert "wsd, peak 0.004, warm-up until step 2, linear decay over the last 4 steps to 0" in card


def test_a_checkpoint_half_way_tells_what_it_has_seen(runs: Runs, tmp_path: Path, command: Command) -> None:
    card = card_of(command, runs.first / "iter_0000003", tmp_path / "hf")
    assert "1,536 tokens; step 3 of 10 planned." in card
    assert [row[:3] for row in rows(card, "Run")] == [["short", "stable", "3"]]
    assert "## Evaluation" not in card, "the first evaluation was at step 4"
    card = card_of(command, runs.first / "iter_0000006", tmp_path / "later")
    assert "During training, at step 4," in card


def test_an_export_says_how_far_its_training_had_come(runs: Runs, tmp_path: Path, command: Command) -> None:
    """Warm-up until step 2, a linear decay over the last 4 of 10 steps; a step is 512 tokens."""
    for step, tokens, share in ((6, 3_072, 1.0), (9, 4_608, 0.25)):
        assert command("to-hf", runs.first / f"iter_{step:07d}", tmp_path / f"hf_{step}").code == 0
        assert smol_progress.read(tmp_path / f"hf_{step}") == (step, tokens, pytest.approx(share))


def test_held_out_losses_and_parity_are_the_files(runs: Runs, tmp_path: Path, command: Command) -> None:
    card = card_of(command, runs.first, tmp_path / "hf")
    last = json.loads((runs.first / "metrics.jsonl").read_text().splitlines()[-1])
    assert "at step 10, on text" in card
    assert {row[0]: row[1] for row in rows(card, "Held-out set")} == {
        name: f"{last[f'eval/loss/{name}']:.4f}" for name in ("code", "docs")
    }
    parity = json.loads((tmp_path / "hf" / "parity.json").read_text())
    assert f"{parity['max_logit_difference']:.5g} (tolerance 0.0001)" in card
    assert f"100 % of {parity['positions']:,} positions" in card


def test_runs_that_followed_each_other_are_told_together(runs: Runs, tmp_path: Path, command: Command) -> None:
    card = card_of(command, runs.second, tmp_path / "hf")
    assert f"{5_120 + 3 * BATCH * 128:,} tokens, in 2 runs that followed each other; step 3." in card
    assert [row[:2] + row[4:] for row in rows(card, "Run")] == [
        ["short", "stable", "64", "8", "50,000"],
        ["short", "decay", "64", "8", "50,000"],
        ["long", "long", "128", "8", "1,000,000"],
    ]
    assert "| Dataset | short: stable | short: decay | long: long | Tokens |" in card
    assert [row[3] for row in rows(card, "Dataset") if "code" in row[0]] == [""], "a weight of 0 is no share"
    assert "cosine, peak 0.004, warm-up until step 1, falling to 0 at the end" in card


def test_an_earlier_run_that_is_gone_is_said_to_be(runs: Runs, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(runs.second, tmp_path / "long"))
    [checkpoint] = alone.glob("iter_*")
    (checkpoint / "run.yaml").write_text((checkpoint / "run.yaml").read_text().replace(str(runs.first), "/gone/short"))
    record = read_record(checkpoint)
    assert [one.name for one in record.runs] == ["long"]
    assert record.origin == training_record.Origin("gone/short", published=False)


def test_a_branch_does_not_tell_its_past_twice(runs: Runs, tmp_path: Path) -> None:
    """With data_position, the history holds the steps of the run that the branch left."""
    checkpoint = Path(shutil.copytree(runs.first / "iter_0000010", tmp_path / "branch" / "iter_0000010"))
    settings = yaml.safe_load((checkpoint / "run.yaml").read_text())
    settings["start_from"] = {"checkpoint": str(runs.first / "iter_0000006"), "optimizer": True, "data_position": True}
    (checkpoint / "run.yaml").write_text(yaml.safe_dump(settings))
    record = read_record(checkpoint)
    assert [(one.name, one.steps, one.tokens) for one in record.runs] == [("branch", 10, 5_120)]
    assert record.origin is None


def test_a_run_that_names_its_own_checkpoint_ends(runs: Runs, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(runs.second, tmp_path / "long")) / "iter_0000003"
    settings: dict[str, Any] = yaml.safe_load((checkpoint / "run.yaml").read_text())
    settings["start_from"]["checkpoint"] = str(checkpoint.parent)
    (checkpoint / "run.yaml").write_text(yaml.safe_dump(settings))
    assert len(read_record(checkpoint).runs) == 1


def test_skipped_samples_are_not_told_as_trained(runs: Runs) -> None:
    """A stage with a gap, as a rollback leaves it: 2 steps, 16 samples passed over, 4 steps."""
    weights = {"code": 1.0, "docs": 1.0}
    segments = [
        {"stage": "one", "weights": weights, "first_step": 0, "steps": 2, "first_sample": 0, "batch_size": 8},
        {"stage": "one", "weights": weights, "first_step": 2, "steps": 4, "first_sample": 32, "batch_size": 8},
    ]
    [stage] = training_record._stages(history_of({"history": segments}), WINDOW)
    assert (stage.steps, sum(stage.given.values()), stage.tokens) == (6, 48, 48 * WINDOW)
    assert sum(dataset_positions(history_of({"history": segments})).values()) == 64, "of which 16 were not trained on"


def test_weights_that_were_only_converted_name_their_source(
    smollm3_export: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub" / "models--org--base-model" / "snapshots" / "0123"  # as the Hub's cache lays it
    shutil.copytree(smollm3_export, cached)
    assert command("from-hf", cached, tmp_path / "imported" / "iter_0000000").code == 0
    card = card_of(command, tmp_path / "imported", tmp_path / "hf")
    assert ModelCard(card).data.base_model == "org/base-model"
    assert "The weights of org/base-model, converted to Megatron-Core's format and back." in card
    assert "## Training" not in card and "## Evaluation" not in card
    assert str(tmp_path) not in card
    assert hub_name(smollm3_export) is None


def test_no_path_of_the_machine_is_published(runs: Runs, tmp_path: Path, command: Command) -> None:
    assert "/" + str(runs.first).split("/")[1] + "/" not in card_of(command, runs.second, tmp_path / "hf")


def test_a_record_without_datasets_folders_or_metrics_is_read(runs: Runs, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(runs.first / "iter_0000010", tmp_path / "moved" / "iter_0000010"))
    text = (checkpoint / "run.yaml").read_text().replace(str(runs.first.parent), "/gone")
    (checkpoint / "run.yaml").write_text(text)
    record = read_record(checkpoint)
    assert (record.repositories, record.held_out, record.tokens) == ({}, None, 5_120)
    assert sum(tokens_by_dataset(record.runs).values()) == 5_120
    assert isinstance(record, Record)


def test_layers_that_llama_cpp_would_get_wrong_are_named(tmp_path: Path, runs: Runs, command: Command) -> None:
    assert "do not convert it to GGUF" not in card_of(command, runs.first, tmp_path / "hf")
    checkpoint = Path(shutil.copytree(runs.first / "iter_0000010", tmp_path / "other" / "iter_0000010"))
    settings = yaml.safe_load((checkpoint / "run.yaml").read_text())
    settings["model"]["no_rope"] = [0, 2]
    (checkpoint / "run.yaml").write_text(yaml.safe_dump(settings))
    (checkpoint / "COMPLETE").write_text("10\n")  # as before files were listed
    assert "do not convert it to GGUF" in card_of(command, checkpoint, tmp_path / "changed")


def turns(end: str) -> str:
    return "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}" + end + "\n{% endfor %}"


ENDS: dict[str, tuple[str | None, int | list[int]]] = {
    "a token of its own": (turns("<|im_end|>"), [1, 259]),
    "end of text": (turns("<eos>"), 1),
    "a new line": (turns(""), 1),
    "a template that refuses": ("{{ raise_exception('tools are needed') }}", 1),
    "no template": (None, 1),
}
"""Chat template, and eos_token_id in generation_config.json."""


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_a_chat_turn_ends_what_is_generated_too(
    name: str, smollm3_checkpoint: Path, byte_tokenizer: Path, tmp_path: Path, command: Command
) -> None:
    template, ends = ENDS[name]
    tokenizer = transformers.AutoTokenizer.from_pretrained(byte_tokenizer)
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "chat")
    ran = command("to-hf", smollm3_checkpoint, tmp_path / "hf", "--tokenizer", tmp_path / "chat")
    assert ran.code == 0, ran.err
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "hf").eos_token_id == ends
    assert transformers.AutoConfig.from_pretrained(tmp_path / "hf").eos_token_id == 1


def test_figures_that_are_not_finite_are_told(runs: Runs) -> None:
    """An export with --allow-nan has null in its parity.json."""
    told = Exported(SMOLLM3, families.SMOLLM3, 64, 1.0, "bfloat16", None)
    nothing = {"megatron": None, "hf": None}
    parity = {"max_logit_difference": None, "tolerance": None, "top1_agreement": 1.0, "positions": 4, "perplexity": nothing}
    card = model_card("a", told, read_record(runs.first / "iter_0000003"), parity)
    assert "| Perplexity of a fixed text | not finite and not finite |" in card


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        (ScheduleConfig(kind="wsd", warmup_steps=5), "wsd, peak 0.001, warm-up until step 5"),
        (ScheduleConfig(kind="constant"), "constant, peak 0.001, warm-up until step 0"),
        (
            ScheduleConfig(kind="multi_step", milestones=[8_000, 9_000], factor=0.1),
            "multi_step, peak 0.001, warm-up until step 0, times 0.1 after steps 8,000, 9,000",
        ),
        (
            ScheduleConfig(kind="cosine", min_learning_rate=1e-4),
            "cosine, peak 0.001, warm-up until step 0, falling to 0.0001 at the end",
        ),
    ],
)
def test_every_schedule_has_its_words(schedule: ScheduleConfig, sentence: str) -> None:
    assert _schedule(OptimConfig(learning_rate=1e-3, schedule=schedule).model_dump()) == sentence


def test_a_bar_in_a_cell_is_escaped() -> None:
    assert table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"
