"""The search behind `decontaminate` finds what comparing words finds, in whatever blocks the text is hashed."""

from pathlib import Path

import numpy as np
import pytest
from document_files import read_documents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_tools import ngram_index
from data_tools.ngram_index import NgramIndex, build_index, normalised, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't  PANIC:\n\tit's_ok, 42nd!", "don t panic it s_ok 42nd"),
        ("naïve CAFÉ — “quoted”…", "naïve café quoted"),
        ("ﬁne ½ Ｆｕｌｌ", "fine 1 2 full"),  # NFKC: ligature, fraction, full width
        ("東京へ行く ok漢字ok", "東 京 へ 行 く ok 漢 字 ok"),
        ("Привет,мир 한국어 문장", "привет мир 한국어 문장"),
        ("\ud800 lone", "lone"),  # JSON can hold half a surrogate pair
        ("", ""),
    ],
)
def test_words_are_what_the_rule_says(text: str, words: str) -> None:
    assert b" ".join(words_of(normalised(text))).decode() == words


def found(folder: Path, references: list[str], documents: list[str], length: int, least: int) -> dict[tuple[int, int], int]:
    """Document, reference -> number of places, by the index."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    build_index(folder, references, length, least)
    matches = NgramIndex(folder).find([normalised(document) for document in documents])
    return {(match.document, match.reference): match.places for match in matches}


def found_plainly(references: list[str], documents: list[str], length: int, least: int) -> dict[tuple[int, int], int]:
    """The same by comparing words."""
    result = {}
    for number, reference in enumerate(references):
        ours = words_of(normalised(reference))
        span = min(length, len(ours))
        ngrams = {tuple(ours[at : at + span]) for at in range(len(ours) - span + 1)} if len(ours) >= least else set()
        for document, text in enumerate(documents):
            theirs = words_of(normalised(text))
            places = sum(tuple(theirs[at : at + span]) in ngrams for at in range(len(theirs) - span + 1))
            if places:
                result[document, number] = places
    return result


passages = st.lists(st.text("aBc ,\n漢é", max_size=40), min_size=1, max_size=6)


@given(references=passages, documents=passages, length=st.integers(2, 6), least=st.integers(1, 6), block=st.integers(1, 60))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_index_finds_what_comparing_words_finds(
    tmp_path: Path, references: list[str], documents: list[str], length: int, least: int, block: int
) -> None:
    least = min(least, length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_index, "_BLOCK", block)
        assert found(tmp_path / "index", references, documents, length, least) == found_plainly(
            references, documents, length, least
        )


def test_hashes_that_collide_are_no_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_index, "_mixed", np.zeros_like)  # all n-grams hash alike
    references, documents = (
        ["one two three four", "five six seven eight"],
        ["one two three five six seven eight", "a b c d e f"],
    )
    matches = found(tmp_path / "index", references, documents, 4, 4)
    assert list(matches) == [(0, 1)]


def test_every_passage_of_real_text_is_found_and_no_other_text(corpus: Path, tmp_path: Path) -> None:
    """Each document is the sources of one module; passages are cut from the middle of every fourth."""
    texts = [document["text"] for document in read_documents(corpus / "code")][:120]
    passages = [text[len(text) // 2 :][:300] for text in texts[::4]]
    matches = found(tmp_path / "index", passages, texts, 13, 8)
    assert matches == found_plainly(passages, texts, 13, 8)
    long_enough = [number for number, passage in enumerate(passages) if len(words_of(normalised(passage))) >= 15]
    assert len(long_enough) > 20
    assert {(4 * number, number) for number in long_enough} <= set(matches)
