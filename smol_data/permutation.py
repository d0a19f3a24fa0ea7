"""A keyed permutation of 0 .. N - 1 that is computed, not stored: how smol_data.order visits each window once per epoch.

A Feistel network permutes the next power of two; walking its cycle until it is back inside keeps it a bijection of the N
(Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): fewer than two steps on average. One definition serves a
single index and a numpy array of them. Any change here reorders runs in flight: see ORDER_VERSION.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6  # by the chi-square of neighbouring indices 3 are as good as a true shuffle, and 2 are not
_WORD = (1 << 64) - 1


def round_keys(*identity: str | int) -> list[int]:
    """Six 64-bit keys, hashed from a tuple: (seed 1, epoch 0) has nothing to do with (seed 0, epoch 1)."""
    digest = hashlib.blake2b(json.dumps(identity).encode(), digest_size=8 * ROUNDS).digest()
    return [int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8)]


def permute(index: int, size: int, keys: Sequence[int]) -> int:
    """Where the permutation of 0 .. size - 1 with these keys sends `index`; size up to 2**63."""
    bits = (size - 1).bit_length()
    permuted: int = _feistel(index, bits, keys)
    while permuted >= size:
        permuted = _feistel(permuted, bits, keys)
    return permuted


def permute_many(indices: NDArray[np.uint64], size: int, keys: Sequence[int]) -> NDArray[np.uint64]:
    """`permute` of an array of any shape; uint64 in and out."""
    bits = (size - 1).bit_length()
    permuted: NDArray[np.uint64] = _feistel(indices, bits, keys)
    while (outside := permuted >= size).any():
        permuted[outside] = _feistel(permuted[outside], bits, keys)
    return permuted


# Below, x is an int or an array of uint64: the masks keep an int to the 64 bits that an array has anyway.


def _feistel(x: Any, bits: int, keys: Sequence[int]) -> Any:
    """A bijection of [0, 2**bits): each round changes one half by a function of the other. Halves may differ by a bit,
    which keeps the domain below twice the size; equal halves would make it up to four times as large."""
    low_bits = (bits + 1) // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    low, high = x & low_mask, x >> low_bits
    for number, key in enumerate(keys):
        if number % 2 == 0:
            high = high ^ (_mix(low ^ key) & high_mask)
        else:
            low = low ^ (_mix(high ^ key) & low_mask)
    return high << low_bits | low


def _mix(x: Any) -> Any:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014). It must not be affine: then the output's low bits would depend
    on the input's low bits alone, and windows of one parity would keep together."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _WORD
    return x ^ (x >> 31)
