"""Which rows are taken, how often and in which order; packing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from post_training.mixture import RowChoice, draw, pack, times_for_tokens


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0, 2.5, 3.0])
def test_a_share_takes_that_many_rows_to_the_row(share: float) -> None:
    times = RowChoice("a", 1000, share, seed=1).times(0, 1000)
    assert times.sum() == 1000 * share and set(times) <= {int(share), int(share) + 1}


def test_rows_are_not_the_first_ones_and_change_with_seed_and_name() -> None:
    def rows(name: str, seed: int) -> list[int]:
        return np.flatnonzero(RowChoice(name, 1000, 0.1, seed).times(0, 1000)).tolist()

    assert rows("a", 1) == rows("a", 1)
    assert rows("a", 1) != rows("a", 2) and rows("a", 1) != rows("b", 1)
    assert 400 < np.mean(rows("a", 1)) < 600 and max(rows("a", 1)) > 900


def test_files_of_a_source_are_chosen_from_as_one() -> None:
    choice = RowChoice("a", 1000, 0.37, seed=3)
    pieces = [choice.times(0, 250), choice.times(250, 0), choice.times(250, 750)]
    assert np.array_equal(np.concatenate(pieces), choice.times(0, 1000)) and choice.rows == 370


def test_a_larger_share_keeps_the_rows_of_a_smaller_one() -> None:
    small, large = (RowChoice("a", 1000, share, seed=1).times(0, 1000) > 0 for share in (0.2, 0.6))
    assert (large >= small).all()


def test_a_few_rows_to_look_at_are_among_those_taken() -> None:
    some, all_rows = (RowChoice("a", 1000, 0.2, 1, limit).times(0, 1000) > 0 for limit in (50, None))
    assert some.sum() == 50 and (all_rows >= some).all()


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=60),
    tokens=st.integers(1, 50_000),
)
def test_tokens_are_given_to_within_a_sample(lengths: list[int], tokens: int) -> None:
    array = np.array(lengths, dtype=np.int32)
    times = times_for_tokens(tokens, array, seed=0, name="a")
    given_tokens = int((times * array).sum())
    assert tokens <= given_tokens < tokens + max(lengths) and times.max() - times.min() <= 1


def test_all_that_is_drawn_is_there_in_a_seeded_order() -> None:
    times = np.array([2, 0, 1, 3], dtype=np.int64)
    orders = [draw(times, seed).tolist() for seed in range(8)]
    assert all(sorted(order) == [0, 0, 2, 3, 3, 3] for order in orders) and len({tuple(order) for order in orders}) > 3
    assert draw(times, 0).tolist() == orders[0]


@given(lengths=st.lists(st.integers(1, 64), max_size=200), seed=st.integers(0, 3))
def test_packing_loses_and_cuts_nothing(lengths: list[int], seed: int) -> None:
    array = np.array(lengths, dtype=np.int32)
    rows = pack(array, 64, seed)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(array[row].sum() <= 64 for row in rows)
    # Best fit leaves no two rows that would fit into one.
    filled = sorted(int(array[row].sum()) for row in rows)
    assert len(rows) < 2 or filled[0] + filled[1] > 64


def test_rows_are_filled_and_in_a_seeded_order() -> None:
    lengths = np.random.default_rng(0).integers(10, 300, 5000).astype(np.int32)
    rows = pack(lengths, 1024, seed=0)
    assert lengths.sum() / (len(rows) * 1024) > 0.99
    longest = np.array([lengths[row].max() for row in rows])
    assert abs(np.corrcoef(longest, np.arange(len(rows)))[0, 1]) < 0.2
    assert [row.tolist() for row in rows] == [row.tolist() for row in pack(lengths, 1024, seed=0)]
