"""Packing against a slow reference that walks token by token."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smol_data.batch import ContextRank, PackedBatch, context_part, pack
from smol_data.shards import Window


def slow_pack(windows: list[Window], document_mask: bool) -> dict[str, list[int]]:
    tokens, labels, mask, positions, boundaries = [], [], [], [], [0]
    for window in windows:
        length = len(window.tokens) - 1
        position = 0
        for i in range(length):
            tokens.append(int(window.tokens[i]))
            labels.append(int(window.tokens[i + 1]))
            next_is_another_document = i + 1 in window.document_ends
            mask.append(0.0 if next_is_another_document else 1.0)
            positions.append(position)
            position += 1
            if i + 1 == length or (next_is_another_document and document_mask):
                boundaries.append(len(tokens))
                position = 0
    return {"tokens": tokens, "labels": labels, "loss_mask": mask, "position_ids": positions, "cu_seqlens": boundaries}


@st.composite
def some_windows(draw: st.DrawFn) -> list[Window]:
    length = draw(st.integers(1, 12))
    ends = st.sets(st.integers(1, length)).map(sorted)
    tokens = st.lists(st.integers(0, 2**31 - 1), min_size=length + 1, max_size=length + 1)
    window = st.builds(lambda t, e: Window(np.array(t, dtype=np.uint32), np.array(e, dtype=np.int32)), tokens, ends)
    return draw(st.lists(window, min_size=1, max_size=4))


@given(some_windows(), st.booleans())
def test_pack_equals_the_slow_reference(windows: list[Window], document_mask: bool) -> None:
    batch, slow = pack(windows, document_mask).expand(), slow_pack(windows, document_mask)
    for name, expected in slow.items():
        assert getattr(batch, name).flatten().tolist() == expected
    assert batch.max_seqlen == max(np.diff(slow["cu_seqlens"]))
    assert (np.diff(batch.cu_seqlens) > 0).all()


@pytest.mark.parametrize("document_mask", [True, False])
def test_types_are_those_of_the_contract(document_mask: bool) -> None:
    batch = pack([Window(np.arange(9), np.array([3, 8], dtype=np.int32))] * 2, document_mask).expand()
    kinds = {
        name: (str(value.dtype).removeprefix("torch."), tuple(value.shape))
        for name, value in vars(batch).items()
        if name != "max_seqlen"
    }
    assert kinds == {
        "tokens": ("int64", (1, 16)),
        "labels": ("int64", (1, 16)),
        "loss_mask": ("float32", (1, 16)),
        "position_ids": ("int64", (1, 16)),
        "cu_seqlens": ("int32", (5 if document_mask else 3,)),
        "datasets": ("int32", (2,)),
    }
    assert type(batch.max_seqlen) is int
    assert batch.loss_mask.sum() == 12  # the ablation leaves out the same targets


def test_no_target_of_a_stream_is_lost_but_those_that_cross_documents() -> None:
    """Neighbouring windows overlap by one token: together they train on every token of a document but its first."""
    stream, ends = np.arange(33), np.array([5, 16, 17])
    windows = [
        Window(stream[w * 8 : w * 8 + 9], np.array([e - w * 8 for e in ends if 0 < e - w * 8 <= 8], dtype=np.int32))
        for w in range(4)
    ]
    batch = pack(windows).expand()
    trained = batch.labels[batch.loss_mask == 1].tolist()
    assert trained == [token for token in range(1, 33) if token not in ends]


# --- documents padded for context parallelism -------------------------------------------------------------------------------

some_text = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(some_text, st.sampled_from([2, 4, 8]), st.integers(0, 7))
def test_padded_documents_train_the_same_targets_but_for_what_no_longer_fits(
    lengths: list[int], multiple: int, skip: int
) -> None:
    """Every target keeps its input and its position; only the tail of the window may be missing."""
    length = 64
    stream = np.arange(1, sum(lengths) + length + 10)
    ends = np.cumsum(lengths)
    window = Window(
        stream[skip : skip + length + 1], np.array([e - skip for e in ends if 0 < e - skip <= length], dtype=np.int32)
    )
    plain, padded = pack([window]).expand(), pack([window], multiple=multiple).expand()
    assert (padded.cu_seqlens % multiple == 0).all() and padded.cu_seqlens[-1] == length
    assert padded.max_seqlen == int(padded.cu_seqlens.diff().max())

    def targets(batch: PackedBatch) -> list[tuple[int, int, int]]:
        counted = batch.loss_mask[0] == 1
        parts = (batch.tokens[0], batch.labels[0], batch.position_ids[0])
        return list(zip(*(part[counted].tolist() for part in parts), strict=True))

    kept, whole = targets(padded), targets(plain)
    assert kept == whole[: len(kept)]
    documents = len(window.document_ends) + 1
    assert len(whole) - len(kept) <= documents * (multiple - 1)


def test_windows_that_need_no_padding_stay_as_they_are() -> None:
    window = Window(np.arange(65), np.array([16, 32, 64], dtype=np.int32))
    plain, padded = pack([window, window]).expand(), pack([window, window], multiple=8).expand()
    for name in ("tokens", "labels", "loss_mask", "position_ids", "cu_seqlens"):
        assert getattr(plain, name).tolist() == getattr(padded, name).tolist()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_context_ranks_share_every_document_evenly(ranks: int) -> None:
    window = Window(np.arange(129), np.array([3, 40, 41, 100], dtype=np.int32))
    batch = pack([window, window._replace(tokens=window.tokens + 1000)], multiple=2 * ranks).expand()
    parts = [context_part(batch, ContextRank(rank, ranks)) for rank in range(ranks)]
    borders = batch.cu_seqlens.tolist()
    for rank, part in enumerate(parts):
        expected = []
        for first, end in pairwise(borders):
            chunk = (end - first) // (2 * ranks)
            for number in (rank, 2 * ranks - 1 - rank):
                expected += range(first + number * chunk, first + (number + 1) * chunk)
        for name in ("tokens", "labels", "loss_mask", "position_ids"):
            assert getattr(part, name).tolist() == getattr(batch, name)[:, expected].tolist()
        assert part.cu_seqlens is batch.cu_seqlens
        ids = part.tokens.view(2, -1)  # window by window, as the losses of each are added up
        assert (ids[0] < 1000).all() and ((ids[1] == 0) | (ids[1] >= 1000)).all()
    assert sum(float(part.loss_mask.sum()) for part in parts) == float(batch.loss_mask.sum())
