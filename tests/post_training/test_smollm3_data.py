"""SmolLM3's mixtures for post-training: every source that its sources name, with its mode and share."""

from pathlib import Path

import pytest
from tiny_runs import REPOSITORY

from post_training.config import Data, PreparationConfig
from post_training.mixture import RowChoice
from smol_config import load

FOLDER = REPOSITORY / "configs" / "post_training" / "smollm3"
ROWS_OF_PAIRS = {
    "llama_3.1_tulu_3_8b_preference_mixture_no_think": 230_501,
    "tulu_3_8b_pref_mix_Qwen3_32B_Qwen3_0.6B_think": 216_385,
}
"""As smoltalk2's card has them."""


def data(name: str) -> Data:
    return load(PreparationConfig, FOLDER / f"{name}_data.yaml", ["model=x"]).data


@pytest.mark.parametrize("name", ["mid", "sft", "preference"])
def test_modes_are_those_of_the_names(name: str) -> None:
    for source in data(name).sources:
        assert source.mode == ("no_think" if source.name.endswith("_no_think") else "think")
        assert source.files == [f"{name.upper() if name == 'sft' else name.capitalize()}/{source.name}-*"]


def test_the_sft_mixture_has_its_25_parts_and_weights() -> None:
    shares = {source.name: source.share for source in data("sft").sources}
    assert len(shares) == 25 and data("sft").max_length == 65_536
    assert {name: share for name, share in shares.items() if share} == {
        "smoltalk_smollm3_smol_magpie_ultra_no_think": 0.5,
        "OpenHermes_2.5_no_think": 0.5,
        "OpenThoughts3_1.2M_no_think_no_think": 0.4,
        "smoltalk_multilingual8_Qwen3_32B_think": 0.3,
        "OpenThoughts3_1.2M_think": 0.02,
    }


def test_the_pairs_are_as_many_as_smollm3_had() -> None:
    found = data("preference")
    taken = [RowChoice(one.name, ROWS_OF_PAIRS[one.name], one.share or 1, found.seed).rows for one in found.sources]
    assert sum(taken) == 169_346 and found.kind == "preference"


def test_mid_training_trains_all_tokens_of_plain_chatml() -> None:
    found = data("mid")
    assert (found.loss_on, found.template, found.max_length) == ("all", "chatml", 32_768)
    assert Path(found.sources[0].path).name == "smoltalk2"
