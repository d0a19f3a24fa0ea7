"""to-hf and verify: exports load and are equal, and fail closed when they are not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from ranks import Ranks
from safetensors.torch import load_file, save_file
from small_models import LLAMA, QWEN2, QWEN3, SMOLLM3, Command, figures, random_weights, save_split_checkpoint

from conversion import to_hf, verify
from conversion.weights import weight_table
from smol_model.config import ModelConfig

FIGURES = {
    "max_logit_difference",
    "top1_agreement",
    "perplexity",
    "tolerance",
    "dtype",
    "versions",
    "passed",
    "reason",
    "positions",
    "max_logit",
    "unequal_tensors",
    "checkpoint",
}


# --- what an export is -----------------------------------------------------------------------------------------------------


def test_an_export_is_a_whole_hugging_face_folder(smollm3_export: Path) -> None:
    assert {path.name for path in smollm3_export.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        "parity.json",
    }, "and no training.json: nothing trained these weights"
    assert not smollm3_export.with_name("hf.partial").exists()
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm3_export)
    assert (type(model).__name__, model.dtype) == ("SmolLM3ForCausalLM", torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == SMOLLM3.parameters
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id, model.config.pad_token_id) == (0, 1, 2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm3_export)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ahoy"}], tokenize=False) == "ahoy"
    generated = model.generate(**tokenizer("ahoy", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert generated.shape[1] > 4


def test_weights_are_the_checkpoints_bit_for_bit(smollm3_export: Path) -> None:
    written = load_file(smollm3_export / "model.safetensors")
    weights = random_weights(SMOLLM3, torch.bfloat16)
    for weight in weight_table(SMOLLM3):
        for name, tensor in weight.split(weights[weight.megatron], SMOLLM3).items():
            assert torch.equal(written.pop(name), tensor)
    assert not written


@pytest.mark.parametrize("which", ["smollm3_export", "qwen2_export", "qwen3_export"])
def test_the_file_is_the_one_that_transformers_saves(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    export: Path = request.getfixturevalue(which)
    transformers.AutoModelForCausalLM.from_pretrained(export).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (export / "model.safetensors").read_bytes()


def test_an_export_in_several_files_loads(llama_export: Path) -> None:
    files = sorted(path.name for path in llama_export.glob("*.safetensors"))
    assert len(files) > 2 and files[0].startswith("model-00001-of-")
    model = transformers.AutoModelForCausalLM.from_pretrained(llama_export)
    assert model.dtype == torch.float32
    weights = random_weights(LLAMA, torch.float32)
    assert torch.equal(model.lm_head.weight, weights["output_layer.weight"])
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, weights["decoder.layers.1.mlp.linear_fc2.weight"])


def test_parity_has_all_figures(smollm3_export: Path, llama_export: Path) -> None:
    for folder, dtype in ((smollm3_export, "bf16"), (llama_export, "fp32")):
        parity = figures(folder)
        assert set(parity) == FIGURES
        assert (parity["passed"], parity["reason"], parity["unequal_tensors"], parity["dtype"]) == (True, None, [], dtype)
        assert parity["max_logit_difference"] <= parity["tolerance"] == 1e-4
        assert parity["top1_agreement"] == 1.0
        assert parity["perplexity"]["megatron"] == pytest.approx(parity["perplexity"]["hf"], rel=1e-5)


def test_an_export_with_yarn_computes_what_megatron_core_does_with_yarn(
    smollm3_checkpoint: Path, smollm3_export: Path, tmp_path: Path, command: Command
) -> None:
    folder = tmp_path / "hf"
    assert command("to-hf", smollm3_checkpoint, folder, "--yarn", "4").code == 0
    config = json.loads((folder / "config.json").read_text())
    assert (config["max_position_embeddings"], config["rope_parameters"]["rope_type"]) == (256, "yarn")
    parity, plain = figures(folder), figures(smollm3_export)
    assert parity["passed"] and parity["max_logit_difference"] < 1e-5
    assert abs(parity["perplexity"]["hf"] - plain["perplexity"]["hf"]) > 1e-3, "YaRN changes what the model computes"
    assert "64 tokens, read with YaRN up to 256" in (folder / "README.md").read_text()
    # Another original length in the reader's configuration bends other frequencies.
    for key in ("rope_parameters", "rope_scaling"):
        config[key]["original_max_position_embeddings"] = 4096
    (folder / "config.json").write_text(json.dumps(config))
    assert command("verify", smollm3_checkpoint, folder, "--output", tmp_path / "parity.json").code == 1


def test_the_cards_metadata_is_yaml_that_the_hub_reads(smollm3_export: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(smollm3_export / "README.md")
    card_data = yaml.safe_load((smollm3_export / "README.md").read_text().split("---")[1])
    assert card.data.to_dict() == card_data
    assert card_data["library_name"] == "transformers"
    assert f"| Parameters | {SMOLLM3.parameters:,} |" in card.text


@pytest.mark.parametrize("model", [SMOLLM3, QWEN2, QWEN3], ids=["SmolLM3", "Qwen2", "Qwen3"])
def test_a_checkpoint_of_many_ranks_exports_the_same(
    model: ModelConfig, ranks: Ranks, byte_tokenizer: Path, tmp_path: Path, command: Command
) -> None:
    """Two tensor-parallel ranks on each of two pipeline stages; parity is proven by the export itself."""
    folder = tmp_path / "iter_0000000"
    ranks.run(save_split_checkpoint, 4, folder=folder, tokenizer=byte_tokenizer, model=model)
    ran = command("to-hf", folder, tmp_path / "hf", "--dtype", "fp32")
    assert ran.code == 0, ran.err
    written = load_file(tmp_path / "hf" / "model.safetensors")
    query = written[f"model.layers.{model.num_layers - 1}.self_attn.q_proj.weight"]
    assert not torch.equal(*query.chunk(2)), "the ranks' parts differ"


# --- failing closed --------------------------------------------------------------------------------------------------------


def corrupt(change: Callable[[Path], None]) -> Callable[..., Any]:
    """verify_partial, after `change` was made to what had been written."""
    original = to_hf.verify_partial

    def corrupted(folder: Path, partial: Path, *rest: Any) -> Any:
        change(partial)
        return original(folder, partial, *rest)

    return corrupted


def flip_one_bit(partial: Path) -> None:
    """Of an embedding row that none of the compared tokens uses much: the logits hardly move."""
    path = partial / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(bytes(content))


def scale_a_tensor(partial: Path) -> None:
    weights = load_file(partial / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"] *= 2
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})


def rotary_everywhere(partial: Path) -> None:
    config = json.loads((partial / "config.json").read_text())
    (partial / "config.json").write_text(json.dumps(config | {"no_rope_layers": [1] * 4}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (flip_one_bit, "1 tensors differ from the checkpoint's"),
        (scale_a_tensor, "the first of them model.layers.2.mlp.up_proj.weight"),
        (rotary_everywhere, "logits differ by up to"),
    ],
)
def test_an_unequal_export_never_gets_its_name(
    change: Callable[[Path], None],
    reason: str,
    smollm3_checkpoint: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, partial = tmp_path / "hf", tmp_path / "hf.partial"
    monkeypatch.setattr(to_hf, "verify_partial", corrupt(change))
    ran = command("to-hf", smollm3_checkpoint, target)
    assert (ran.code, target.exists(), figures(partial)["passed"]) == (1, False, False)
    assert reason in figures(partial)["reason"] and reason in ran.err

    monkeypatch.undo()
    ran = command("to-hf", smollm3_checkpoint, target)
    assert (ran.code, partial.exists(), figures(target)["passed"]) == (0, False, True)
    assert f"removing {partial}" in ran.out and f"wrote {target}" in ran.out


def test_verification_that_breaks_leaves_its_reason(
    smollm3_checkpoint: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_hf, "verify_partial", corrupt(lambda partial: (partial / "config.json").write_text("{}")))
    ran = command("to-hf", smollm3_checkpoint, tmp_path / "hf")
    assert ran.code == 2 and not (tmp_path / "hf").exists()
    assert "does not load with transformers" in figures(tmp_path / "hf.partial")["reason"]


def test_overwrite_replaces_only_after_success(
    smollm3_checkpoint: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "hf"
    assert command("to-hf", smollm3_checkpoint, target).code == 0
    (target / "mark").touch()
    monkeypatch.setattr(to_hf, "verify_partial", corrupt(scale_a_tensor))
    assert command("to-hf", smollm3_checkpoint, target, "--overwrite").code == 1
    assert (target / "mark").exists()
    monkeypatch.undo()
    assert command("to-hf", smollm3_checkpoint, target, "--overwrite", "--dtype", "fp32").code == 0
    assert not (target / "mark").exists() and figures(target)["dtype"] == "fp32"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


# --- verify ----------------------------------------------------------------------------------------------------------------


def test_verify_writes_figures_where_it_is_told(
    smollm3_checkpoint: Path, smollm3_export: Path, tmp_path: Path, command: Command
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The tide table hangs beside the door. " * 5)
    ran = command("verify", smollm3_checkpoint.parent, smollm3_export, "--text", text, "--output", tmp_path / "out.json")
    assert ran.code == 0 and f"wrote {tmp_path / 'out.json'}" in ran.out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["passed"] and set(written) == FIGURES | {"text_perplexity", "greedy"}
    assert written["greedy"] == {"tokens": 48, "agreed": 48}
    assert written["text_perplexity"]["megatron"] == pytest.approx(written["text_perplexity"]["hf"], rel=1e-5)


def test_every_weight_is_compared_to_its_last_element_block_by_block(
    smollm3_checkpoint: Path, smollm3_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_BLOCK_BYTES", 300)
    folder = Path(shutil.copytree(smollm3_export, tmp_path / "hf"))
    weights = load_file(folder / "model.safetensors")
    last = ["model.embed_tokens.weight", "model.layers.3.mlp.down_proj.weight", "model.norm.weight"]
    for name in last:
        weights[name].view(-1)[-1] *= -1
    save_file(weights, folder / "model.safetensors")
    assert verify.unequal_tensors(smollm3_checkpoint, folder, SMOLLM3) == last
    assert verify.unequal_tensors(smollm3_checkpoint, smollm3_export, SMOLLM3) == []


def test_verify_says_that_two_models_differ(llama_checkpoint: Path, export: Path, command: Command) -> None:
    path = next(path for path in export.glob("*.safetensors") if "model.norm.weight" in load_file(path))
    weights = load_file(path)
    save_file(weights | {"model.norm.weight": -weights["model.norm.weight"]}, path)
    ran = command("verify", llama_checkpoint, export)
    assert ran.code == 1 and "the first of them model.norm.weight; logits differ" in ran.err
    assert figures(export)["unequal_tensors"] == ["model.norm.weight"]
