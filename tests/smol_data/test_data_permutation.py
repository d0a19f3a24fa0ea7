"""The permutation: a bijection for every size, one definition for scalars and arrays, no visible structure, frozen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smol_data.permutation import permute, permute_many, round_keys

SIZES = sorted({1, 2, 3, 5, 7, 48_828} | {2**k + d for k in range(2, 13) for d in (-1, 0, 1)})


@pytest.mark.parametrize("size", SIZES)
def test_every_index_is_hit_once(size: int) -> None:
    permuted = permute_many(np.arange(size, dtype=np.uint64), size, round_keys("seed", 1))
    assert np.array_equal(np.sort(permuted), np.arange(size))


@given(st.integers(1, 2**63), st.data())
def test_scalars_and_arrays_agree(size: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5))
    keys = round_keys(size)
    expected = [permute(index, size, keys) for index in indices]
    assert permute_many(np.array(indices, dtype=np.uint64), size, keys).tolist() == expected
    assert all(0 <= index < size for index in expected)


def test_keys_tell_seed_dataset_and_epoch_apart() -> None:
    identities = [("a", 1, 0), ("a", 0, 1), ("b", 0, 1), ("a", 10, 0), ("a", 1, 1)]
    assert len({tuple(round_keys(*identity)) for identity in identities}) == len(identities)


@pytest.mark.parametrize("size", [65_536, 100_003])
def test_parity_of_the_output_does_not_follow_the_input(size: int) -> None:
    """An affine round function gives a bias near 0.5 here: neighbours alternate between even and odd windows."""
    parity = permute_many(np.arange(size, dtype=np.uint64), size, round_keys(0)) & 1
    for lag in (1, 2, 4, 8, 64):
        assert abs(float(np.mean(parity[lag:] == parity[:-lag])) - 0.5) < 0.02


def test_neighbours_are_spread_like_a_true_shuffle() -> None:
    size, cells = 48_828, 64
    permuted = permute_many(np.arange(size, dtype=np.uint64), size, round_keys(3)).astype(np.int64)
    pairs = np.histogram2d(permuted[:-1], permuted[1:], bins=cells)[0]
    expected = (size - 1) / cells**2
    assert 0.9 < float(((pairs - expected) ** 2 / expected).mean()) < 1.1  # chi-square over its degrees of freedom


def test_the_algorithm_is_frozen() -> None:
    """Changing these reorders every run in flight: raise ORDER_VERSION with them."""
    assert round_keys("frozen", 1) == KEYS
    assert [permute(index, 1000, KEYS) for index in range(8)] == SMALL
    assert [permute(index, 2**40 + 3, KEYS) for index in (0, 1, 2**39)] == LARGE


KEYS = [0x2624A37634BB0BD2, 0xBDE9DEBBEBF7267D, 0xF8AB388DEFB2C400, 0x76CED4F0AEA4CC07, 0x1BD4B94FDA2325ED, 0x2F08A29512196F91]
SMALL = [239, 511, 395, 94, 73, 850, 492, 319]
LARGE = [484433026121, 142315963034, 320896288854]
