"""Documents of a packed row never see each other, in the path that training takes; where that is switched off, they do.

On the CPU "never" is tested to the last bit: with the same shapes the same sums are formed in the same order, so what a
document cannot reach comes out bit for bit the same.
"""

import isolation_jobs
import pytest
from isolation_jobs import DOCUMENTS, same_window
from ranks import Ranks

LAYOUTS = {
    "TP1, fp32": (1, {}),
    "TP1, bf16": (1, {"precision": "bf16"}),
    "TP2, fp32": (2, {"tensor": 2}),
    "TP2 with sequence parallelism, bf16": (2, {"tensor": 2, "sequence": True, "precision": "bf16"}),
}

ONLY_ITSELF = [[document] for document in range(len(DOCUMENTS))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_changing_a_document_leaves_all_others_bit_equal(layout: str, ranks: Ranks) -> None:
    world_size, settings = LAYOUTS[layout]
    for found in ranks.run(isolation_jobs.reached, world_size, **settings):
        assert found["logits"] == ONLY_ITSELF
        assert [set(changed) - {document} for document, changed in enumerate(found["losses"])] == [set()] * len(DOCUMENTS)


@pytest.mark.parametrize("layout", ["TP1, fp32", "TP2 with sequence parallelism, bf16"])
def test_without_the_document_mask_a_change_reaches_the_rest_of_its_window(layout: str, ranks: Ranks) -> None:
    """The check above sees attention across a border: here every later document of the window differs."""
    world_size, settings = LAYOUTS[layout]
    window = same_window()
    later = [[at for at in range(first, len(window)) if window[at] == window[first]] for first in range(len(window))]
    for found in ranks.run(isolation_jobs.reached, world_size, document_mask=False, **settings):
        assert found["logits"] == later


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_document_s_loss_has_no_gradient_for_any_other_document_s_inputs(layout: str, ranks: Ranks) -> None:
    world_size, settings = LAYOUTS[layout]
    # A document of one token inside a window has no target of its own: its loss is masked, so it has no gradient at all.
    wanted = [[] if masked else [document] for document, masked in enumerate(without_targets())]
    for found in ranks.run(isolation_jobs.gradients_reach, world_size, **settings):
        assert found == wanted


def test_without_the_document_mask_a_loss_has_gradients_for_the_window_before_it(ranks: Ranks) -> None:
    window = same_window()
    wanted = [
        [] if masked else [at for at in range(document + 1) if window[at] == window[document]]
        for document, masked in enumerate(without_targets())
    ]
    [found] = ranks.run(isolation_jobs.gradients_reach, 1, document_mask=False)
    assert found == wanted


def test_packed_logits_equal_those_of_each_document_alone(ranks: Ranks) -> None:
    """float32 logits of about 1. A matrix product over another number of rows may be blocked, and so rounded, in another
    way: a few spacings of 1.2e-7 a layer (seen: 2e-6). Attention over a border shows at 0.1 and above."""
    [differences] = ranks.run(isolation_jobs.packed_against_alone, 1)
    assert differences["size"] > 0.3
    assert differences["alone"] < 1e-5
    assert differences["control"] > 0.1


def without_targets() -> list[bool]:
    """Which documents have only masked targets: those of one token that end before their window does."""
    window = same_window()
    last = [at + 1 == len(window) or window[at + 1] != window[at] for at in range(len(window))]
    return [length == 1 and not at_edge for length, at_edge in zip(DOCUMENTS, last, strict=True)]
