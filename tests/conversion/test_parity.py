"""The comparison of two models: what it finds, on networks whose logits are known."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch.nn.functional import cross_entropy

from conversion import parity
from conversion.parity import TOLERANCE, HeadRows, Row, compare, compare_greedy, fixed_rows, text_rows

VOCABULARY = 11


class Table:
    """A network whose logits after each id stand in a table [vocabulary, vocabulary]."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits, self.vocab_size = logits, len(logits)

    def hidden(self, rows: Sequence[Row]) -> torch.Tensor:
        return self.logits[torch.cat([row.ids for row in rows])]

    def head(self) -> HeadRows:
        return lambda first, end: torch.eye(self.vocab_size)[first:end]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of the vocabulary, the last one smaller, and several groups of rows."""
    monkeypatch.setattr(parity, "VOCABULARY_BLOCK", 4)
    monkeypatch.setattr(parity, "TOKENS_AT_ONCE", 40)


def table(seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def fixed() -> list[Row]:
    return fixed_rows([3 * i % VOCABULARY for i in range(16)], VOCABULARY, 16)


def test_the_figures_are_those_of_whole_logits() -> None:
    ours, theirs = table(0), table(1)
    text = text_rows([7 * i * i % VOCABULARY for i in range(95)], 16)
    figures = compare(Table(ours), Table(theirs), fixed(), text)
    ids = torch.cat([row.ids for row in [*fixed(), *text]])
    assert figures["positions"] == len(ids) == 64 + 95
    assert figures["max_logit_difference"] == pytest.approx((ours - theirs)[ids].abs().max().item())
    assert figures["top1_agreement"] == pytest.approx((ours[ids].argmax(1) == theirs[ids].argmax(1)).double().mean().item())
    for side, logits in (("megatron", ours), ("hf", theirs)):
        for name, rows in (("perplexity", fixed()[:1]), ("text_perplexity", text)):
            losses = [cross_entropy(logits[row.ids[:-1]], row.ids[1:], reduction="none") for row in rows]
            assert figures[name][side] == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-5)


def test_one_logit_of_one_id_decides() -> None:
    theirs = table()
    assert compare(Table(table()), Table(theirs), fixed())["passed"]
    theirs[4, 10] += 3 * TOLERANCE
    figures = compare(Table(table()), Table(theirs), fixed())
    assert not figures["passed"] and figures["reason"].startswith("logits differ by up to 0.0003")


def test_a_logit_that_is_not_a_number_fails() -> None:
    broken = table()
    broken[5, 2] = math.nan
    for ours, theirs in itertools.permutations([table(), broken]):
        figures = compare(Table(ours), Table(theirs), fixed(), nan_is_equal=True)
        assert not figures["passed"]
        assert figures["max_logit_difference"] is None
        assert {value is None for value in figures["perplexity"].values()} == {True, False}
    assert not compare(Table(broken), Table(broken), fixed())["passed"]
    assert compare(Table(broken), Table(broken), fixed(), nan_is_equal=True)["passed"], "asked for: broken alike"


def test_a_perplexity_that_overflows_is_none() -> None:
    figures = compare(Table(table(scale=1e4)), Table(table(scale=1e4)), fixed())
    assert figures["passed"] and figures["perplexity"] == {"megatron": None, "hf": None}


def test_the_tolerance_grows_with_logits_above_ten() -> None:
    ours, theirs = torch.full((VOCABULARY, VOCABULARY), 50.0), torch.full((VOCABULARY, VOCABULARY), 50.0004)
    assert compare(Table(ours), Table(theirs), fixed())["tolerance"] == pytest.approx(5 * TOLERANCE, rel=1e-4)


def test_greedy_continuations_agree_token_by_token() -> None:
    """In a table without cycles shorter than the continuation, each id's successor is the next one."""
    successor = torch.roll(torch.eye(VOCABULARY), 1, dims=1)
    prompts = [Row(torch.tensor([1, 2, 3]), (3,)), Row(torch.tensor([9]), (1,))]
    assert compare_greedy(Table(successor), Table(successor), prompts) == {"tokens": 32, "agreed": 32}
    other = successor.clone()
    other[6] = torch.roll(other[6], 1)  # after 6 comes 8: of 16 successors of 3, two are of 6, of 9 one is
    assert compare_greedy(Table(other), Table(successor), prompts) == {"tokens": 32, "agreed": 29}


def test_a_text_is_cut_into_rows_and_a_single_token_is_left_out() -> None:
    assert [row.ids.tolist() for row in text_rows([1, 2, 3, 4, 5, 6, 7], 3)] == [[1, 2, 3], [4, 5, 6]]
    assert [row.lengths for row in text_rows([1, 2, 3, 4, 5], 3)] == [(3,), (2,)]


def test_the_fixed_rows_have_documents_of_one_token_and_ids_of_the_whole_vocabulary() -> None:
    rows = fixed_rows(list(range(9)), 1000, 64)
    assert [len(row.ids) for row in rows] == [9, 64, 64, 64] and rows[3].lengths == (1, 15, 16, 32)
    assert max(int(row.ids.max()) for row in rows[1:]) > 900
