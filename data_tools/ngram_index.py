"""Which texts share n words in a row with a set of reference texts: the search behind `decontaminate`.

    reference texts --build_index--> folder of arrays --NgramIndex.find--> matches of many documents at once

The rule. A text is put into Unicode's NFKC form and lower case; its words are the runs of letters, digits and underscores;
each ideograph and kana is a word of its own, since nothing separates words there; all else separates. Two texts match where n
words in a row are equal. A reference text of fewer words is matched whole, unless it is shorter than `least` words.

The speed. Words are hashed by prefix sums over the bytes (a polynomial modulo 2**64, so any span's hash is a difference), and
runs of n words by prefix sums over those, so that no Python loop sees a word. A table of bits, 16 for each n-gram, sends nearly
all of them away; what is left is looked up in the sorted hashes, and what is found there is compared word by word, so that a
collision of hashes is no match. Memory: 22 to 28 bytes for each n-gram of the references and their words, in files that all
workers map; of the documents, one batch.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 18  # bytes hashed at a time; the arrays beside them take some 40 times as much
_BYTE_BASE, _WORD_BASE = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95  # odd, so that they have inverses modulo 2**64
_IDEOGRAPHS = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
_OTHER = re.compile(r"[^\w\x00-\x7f]+")  # beyond ASCII, what is no word
_WORD = re.compile(rb"[a-z0-9_\x80-\xff]+")
_SEPARATOR = re.compile(rb"[^a-z0-9_\x80-\xff]")
_BITS_PER_GRAM, _MOST_BITS = 16, 30

_U64 = np.uint64


class Match(NamedTuple):
    """A document and a reference that share words."""

    document: int
    """Number in the list given to `find`."""
    reference: int
    """Number in the list given to `build_index`."""
    words: int
    """How many words in a row are shared, at least."""
    places: int
    """Of the document where they are shared."""
    ngram: str
    """The first of them."""
    context: str
    """It, with words of the document around it."""


@dataclass(frozen=True)
class IndexSize:
    """What an index holds."""

    ngrams: int
    too_short: list[int]
    """Numbers of the references of fewer words than are matched."""
    bytes: int


def normalised(text: str) -> bytes:
    """The words of a text in UTF-8, lower case, with one separator or more between them."""
    if text.isascii():
        return text.lower().encode()
    text = _OTHER.sub(" ", unicodedata.normalize("NFKC", text).lower())
    if _IDEOGRAPH.search(text):
        text = _IDEOGRAPH.sub(r" \g<0> ", text)
    return text.encode()


def words_of(data: bytes) -> list[bytes]:
    """The words of a normalised text."""
    return _WORD.findall(data)


# --- hashing -----------------------------------------------------------------------------------------------------------


class _Words(NamedTuple):
    """The words of a block of text."""

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]
    """In bytes of the whole text."""
    own: int
    """n-grams that begin at a later word belong to the next block."""


def _blocks(data: bytes, most_words: int) -> Iterator[_Words]:
    """The words of `data`, which begins and ends with a separator; n-grams of up to `most_words` are whole in some block."""
    begin, size = 0, _BLOCK
    while True:
        separator = _SEPARATOR.search(data, min(begin + size, len(data)) - 1)
        stop = separator.end() if separator else len(data)
        hashes, starts = _hash_words(data[begin:stop])
        if stop == len(data):
            yield _Words(hashes, starts + begin, len(hashes))
            return
        own = len(hashes) - most_words + 1
        if own > 0:
            yield _Words(hashes, starts + begin, own)
            begin, size = begin + int(starts[own]) - 1 if own < len(starts) else stop - 1, _BLOCK
        else:  # a block without enough words, because one of them is very long
            size *= 2


def _hash_words(data: bytes) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hash and first byte of every word; `data` begins and ends with a separator."""
    is_word = np.frombuffer(data.translate(_word_bytes()), np.bool_)
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    size = _power_of_two(len(data))
    sums = np.zeros(len(data) + 1, dtype=_U64)
    np.cumsum(np.frombuffer(data, np.uint8) * _powers(_BYTE_BASE, size)[: len(data)], out=sums[1:])
    hashes = (sums[ends] - sums[starts]) * _powers(pow(_BYTE_BASE, -1, 1 << 64), size)[starts]
    return _mixed(hashes + (ends - starts).astype(_U64)), starts


def _hash_ngrams(words: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """Hash of the `length` words from each word on, as far as there are so many."""
    count = len(words) - length + 1
    if count < 1:
        return np.empty(0, dtype=_U64)
    size = _power_of_two(len(words))
    sums = np.zeros(len(words) + 1, dtype=_U64)
    np.cumsum(words * _powers(_WORD_BASE, size)[: len(words)], out=sums[1:])
    return _mixed((sums[length:] - sums[:count]) * _powers(pow(_WORD_BASE, -1, 1 << 64), size)[:count])


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spreads what a polynomial leaves in the low bits over all of them."""
    x = (x ^ (x >> _U64(32))) * _U64(0xBF58476D1CE4E5B9)
    return x ^ (x >> _U64(29))


@lru_cache(maxsize=16)
def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """base**i modulo 2**64 for i in 0 .. count - 1."""
    powers = np.full(count, base, dtype=_U64)
    powers[0] = 1
    return np.cumprod(powers, dtype=_U64)


def _power_of_two(count: int) -> int:
    return 1 << max(10, (count - 1).bit_length())


@lru_cache(maxsize=1)
def _word_bytes() -> bytes:
    """For each byte 1 where it belongs to a word, else 0."""
    return bytes(_WORD.match(bytes([byte])) is not None for byte in range(256))


def _joined(texts: Sequence[bytes]) -> tuple[bytes, NDArray[np.int64]]:
    """All texts with separators around them, and where each begins."""
    starts = np.cumsum([1, *(len(text) + 1 for text in texts)])[:-1]
    return b"\n".join((b"", *texts, b"")), starts


# --- the index ---------------------------------------------------------------------------------------------------------


def build_index(folder: Path, references: Sequence[str], length: int, least: int) -> IndexSize:
    """Write the index of the references' n-grams of `length` words, and of shorter references whole from `least` words on."""
    texts = [normalised(reference) for reference in references]
    by_length: dict[int, list[int]] = {}
    too_short = []
    for number, text in enumerate(texts):
        if (count := len(words_of(text))) < least:
            too_short.append(number)
        else:
            by_length.setdefault(min(count, length), []).append(number)
    ngrams = 0
    for words, numbers in by_length.items():
        data, begins = _joined([texts[number] for number in numbers])
        hashes, owners = [], []
        for block in _blocks(data, words):
            found = _hash_ngrams(block.hashes, words)[: block.own]
            first = np.searchsorted(begins, block.starts[: len(found)], side="right")
            last = np.searchsorted(begins, block.starts[words - 1 :][: len(found)], side="right")
            hashes.append(found[first == last])
            owners.append(first[first == last] - 1)
        ngrams += _write_length(folder, words, np.concatenate(hashes), np.array(numbers)[np.concatenate(owners)])
    padded = [b" ".join((b"", *words_of(text), b"")) for text in texts]
    np.save(folder / "texts.npy", np.frombuffer(b"".join(padded), np.uint8))
    np.save(folder / "text_starts.npy", np.cumsum([0, *map(len, padded)]))
    np.save(folder / "lengths.npy", np.array(sorted(by_length), dtype=np.int64))
    return IndexSize(ngrams, too_short, sum(path.stat().st_size for path in folder.iterdir()))


def _write_length(folder: Path, words: int, hashes: NDArray[np.uint64], owners: NDArray[np.int64]) -> int:
    """The n-grams of one length: sorted hashes, where the references of each begin, the references; and the table of bits."""
    order = np.argsort(hashes, kind="stable")
    distinct, first = np.unique(hashes[order], return_index=True)
    bits = min(_MOST_BITS, max(16, int(_BITS_PER_GRAM * len(distinct) - 1).bit_length()))
    table = np.zeros(1 << bits >> 3, dtype=np.uint8)
    place = distinct >> _U64(64 - bits)
    np.bitwise_or.at(table, place >> _U64(3), _U64(1) << (place & _U64(7)))
    for name, array in (
        ("hashes", distinct),
        ("first", np.append(first, len(hashes))),
        ("owners", owners[order].astype(np.uint32)),
        ("table", table),
    ):
        np.save(folder / f"{name}-{words}.npy", array)
    return len(distinct)


def _mapped(path: Path) -> NDArray[Any]:
    array = np.load(path, mmap_mode="r" if path.stat().st_size > 1 << 12 else None)  # an empty array cannot be mapped
    return array.view(np.ndarray)


class _Length:
    """The n-grams of one length."""

    def __init__(self, folder: Path, words: int) -> None:
        self.words = words
        names = ("hashes", "first", "owners", "table")
        self.hashes, self.first, self.owners, self.table = (_mapped(folder / f"{name}-{words}.npy") for name in names)
        self._shift = _U64(64 - (8 * len(self.table) - 1).bit_length())

    def look_up(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of `hashes` are in the index, and where."""
        place = hashes >> self._shift
        maybe = np.flatnonzero(self.table[place >> _U64(3)] >> (place & _U64(7)).astype(np.uint8) & np.uint8(1))
        at = np.searchsorted(self.hashes, hashes[maybe])
        found = self.hashes[np.minimum(at, len(self.hashes) - 1)] == hashes[maybe]
        return maybe[found], at[found]


class NgramIndex:
    """An index that was written, for searching. Opening it maps its files and reads next to nothing."""

    def __init__(self, folder: Path) -> None:
        lengths = np.load(folder / "lengths.npy").tolist()
        self._lengths = [_Length(folder, words) for words in lengths]
        self._most = max(lengths, default=1)
        self._texts, self._text_starts = (_mapped(folder / name) for name in ("texts.npy", "text_starts.npy"))

    def find(self, documents: Sequence[bytes], around: int = 12) -> list[Match]:
        """The matches of normalised documents, in their order; one for each pair of document and reference.

        `around` is how many words of context stand on either side of a match.
        """
        data, begins = _joined(documents)
        places: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for block in _blocks(data, self._most):
            for length in self._lengths:
                found, at = length.look_up(_hash_ngrams(block.hashes, length.words)[: block.own])
                for word, gram in zip(found.tolist(), at.tolist(), strict=True):
                    start = int(block.starts[word])
                    document = int(np.searchsorted(begins, start, side="right")) - 1
                    inside = int(block.starts[word + length.words - 1]) - int(begins[document]) < len(documents[document])
                    for owner in length.owners[length.first[gram] : length.first[gram + 1]].tolist() if inside else ():
                        place = (start - int(begins[document]), length.words)
                        if (here := places.setdefault((document, owner), [])) == [] or here[-1] != place:
                            here.append(place)
        return [match for pair, here in sorted(places.items()) if (match := self._match(documents, *pair, here, around))]

    def _match(
        self, documents: Sequence[bytes], document: int, reference: int, places: list[tuple[int, int]], around: int
    ) -> Match | None:
        """The match of a document and a reference whose hashes agree at these places; None when nowhere the words do."""
        text, shared = documents[document], self._reference(reference)
        for start, words in places:
            found = [match[0] for match in islice(_WORD.finditer(text, start), words + around)]
            ngram = b" ".join(found[:words])
            if b" " + ngram + b" " in shared:
                before = words_of(text[max(0, start - 40 * around) : start])[-around:]
                context = b" ".join([*before, b"[" + ngram + b"]", *found[words:]])
                return Match(document, reference, words, len(places), ngram.decode(), context.decode("utf8", "replace"))
        return None

    def _reference(self, number: int) -> bytes:
        """A reference's words, a blank before and after each."""
        return self._texts[self._text_starts[number] : self._text_starts[number + 1]].tobytes()
