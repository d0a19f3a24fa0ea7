"""Networks whose weights come and go compute what whole ones do, and hold none of them in between."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small_models import VOCABULARY

from conversion import ConversionError
from conversion.networks import MegatronNetwork, TransformersNetwork
from conversion.parity import Network, fixed_rows
from smol_train.checkpoint_folder import read_model_config
from smol_train.parallel import ParallelConfig, process_groups

EXPORTS = ["smollm3_export", "llama_export", "qwen2_export", "qwen3_export"]


@pytest.fixture(autouse=True)
def one_process(smollm3_export: Path, llama_export: Path, qwen2_export: Path, qwen3_export: Path) -> Iterator[None]:
    """A group of one, after the exports, whose commands start groups of their own."""
    with process_groups(ParallelConfig(), seed=0):
        yield


@pytest.fixture(params=EXPORTS)
def export(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def megatron(export: Path, streamed: bool, factor: float = 1.0) -> MegatronNetwork:
    folder = export.parent / "iter_0000000"
    return MegatronNetwork.load(folder, read_model_config(folder), 64, torch.bfloat16, factor, streamed)


def transformers(export: Path, streamed: bool) -> TransformersNetwork:
    return TransformersNetwork.load(export, streamed)


@pytest.mark.parametrize("load", [megatron, transformers])
def test_a_streamed_network_computes_what_a_whole_one_does(export: Path, load: Callable[[Path, bool], Network]) -> None:
    rows = fixed_rows(list(range(20)), VOCABULARY, 64)
    with torch.no_grad():
        (whole, streamed) = (load(export, flag) for flag in (False, True))
        assert torch.equal(whole.hidden(rows), streamed.hidden(rows))
        assert torch.equal(streamed.hidden(rows[:1]), whole.hidden(rows[:1])), "a second time, other ids"
    assert whole.vocab_size == streamed.vocab_size == VOCABULARY
    assert torch.equal(whole.head()(100, 260), streamed.head()(100, 260))
    assert streamed.head()(3, 7).dtype == torch.float32


@pytest.mark.parametrize("load", [megatron, transformers])
def test_a_streamed_network_holds_no_weights_before_and_after_it_runs(
    export: Path, load: Callable[[Path, bool], MegatronNetwork | TransformersNetwork]
) -> None:
    network = load(export, True)
    for _ in range(2):
        assert {parameter.device.type for parameter in network._network.parameters()} == {"meta"}
        network.hidden(fixed_rows([1, 2], VOCABULARY, 16))


def test_a_streamed_network_has_the_stretched_frequencies_of_yarn(smollm3_export: Path) -> None:
    rows = fixed_rows(list(range(20)), VOCABULARY, 64)
    with torch.no_grad():
        plain, (whole, streamed) = (
            megatron(smollm3_export, True),
            (megatron(smollm3_export, flag, 4.0) for flag in (False, True)),
        )
        assert torch.equal(whole.hidden(rows), streamed.hidden(rows))
        assert not torch.allclose(plain.hidden(rows), streamed.hidden(rows), atol=1e-3)


def test_a_folder_that_transformers_does_not_know_is_refused_streamed_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    for streamed in (False, True):
        with pytest.raises(ConversionError, match="does not load with transformers"):
            TransformersNetwork.load(tmp_path, streamed)
