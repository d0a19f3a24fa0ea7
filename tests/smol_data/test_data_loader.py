"""The loader: DALI hands out what the order and pack say, for any ranks, from any step, and faults come out as themselves."""

import multiprocessing
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from smol_data.batch import ContextRank, PackedBatch, pack
from smol_data.config import DataConfig, StageConfig
from smol_data.loader import HeldOutLoader, TrainLoader
from smol_data.manifest import DataError
from smol_data.order import Order
from smol_data.schedule import Segment, batch_at, resolve_segments, total_steps, truncate
from smol_data.shards import TokenDataset

S = 32
CPU = torch.device("cpu")


@pytest.fixture
def data(make_dataset: Callable, docs: list[np.ndarray]) -> DataConfig:
    """Two datasets small enough to be seen several times, in two stages."""
    parts = {"text": docs[:8], "more": docs[8:12], "held": docs[12:20]}
    folders = {name: str(make_dataset(name, docs=part).folder) for name, part in parts.items()}
    return DataConfig(
        tokenizer="byte-level",
        sequence_length=S,
        datasets={name: folders[name] for name in ("text", "more")},
        held_out={"held": folders["held"]},
        stages=[
            StageConfig(name="stable", steps=4, weights={"text": 0.7, "more": 0.3}),
            StageConfig(name="decay", steps=3, weights={"more": 1.0}),
        ],
        skip_samples=[(24, 25)],
    )


@pytest.fixture
def segments(data: DataConfig) -> list[Segment]:
    return resolve_segments(data.stages, S, 12, data.skip_samples)


def collect(data: DataConfig, segments: list[Segment], b: int = 2, rank: int = 0, world: int = 1, **options: Any) -> list:
    loader = TrainLoader(data, segments, b, rank, world, CPU, **options)
    batches = list(loader)
    loader.close()
    return batches


def same(one: PackedBatch, other: PackedBatch) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(PackedBatch))


def expected_rows(data: DataConfig, segments: list[Segment]) -> list[list[list[int]]]:
    """Tokens of every window of every step, straight from the order and the shards."""
    datasets = {name: TokenDataset(folder, S, name) for name, folder in data.datasets.items()}
    order = Order(segments, data.seed, {name: dataset.num_windows for name, dataset in datasets.items()})
    steps = []
    for step in range(total_steps(segments)):
        first, size, _ = batch_at(segments, step)
        places = order.locate_range(first, first + size)
        steps.append([datasets[p.dataset].window(p.window).tokens[:-1].tolist() for p in places])
    return steps


@pytest.mark.parametrize("document_mask", [True, False])
def test_batches_are_those_of_order_and_pack(data: DataConfig, segments: list[Segment], document_mask: bool) -> None:
    data = data.model_copy(update={"document_mask": document_mask})
    datasets = {name: TokenDataset(folder, S, name) for name, folder in data.datasets.items()}
    order = Order(segments, data.seed, {name: dataset.num_windows for name, dataset in datasets.items()})
    batches = collect(data, segments, b=3, rank=1, world=2)
    assert len(batches) == 7 * 2
    for number, batch in enumerate(batches):
        first = batch_at(segments, number // 2).first_sample + (number % 2 * 2 + 1) * 3
        places = order.locate_range(first, first + 3)
        windows = [datasets[p.dataset].window(p.window) for p in places]
        direct = pack(windows, document_mask, datasets=[list(data.datasets).index(p.dataset) for p in places]).expand()
        assert same(batch, direct)
        assert all(getattr(batch, f.name).device == CPU for f in fields(batch) if f.name != "max_seqlen")
        assert batch.cu_seqlens.dtype == torch.int32
        assert batch.loss_mask.dtype == torch.float32
        assert type(batch.max_seqlen) is int


@pytest.mark.parametrize(("world", "b"), [(1, 1), (1, 12), (2, 3), (3, 2), (4, 1), (6, 2)])
def test_ranks_together_take_each_global_batch(data: DataConfig, segments: list[Segment], world: int, b: int) -> None:
    ranks = [collect(data, segments, b, rank, world) for rank in range(world)]
    per_step = 12 // (world * b)
    for step, rows in enumerate(expected_rows(data, segments)):
        taken = []
        for micro_batch in range(step * per_step, (step + 1) * per_step):
            for rank in range(world):
                taken += ranks[rank][micro_batch].tokens.reshape(b, S).tolist()
        assert taken == rows


def test_starting_at_a_step_equals_running_up_to_it(data: DataConfig, segments: list[Segment]) -> None:
    full = collect(data, segments)
    for step in range(total_steps(segments) + 1):
        rest = collect(data, segments, start_step=step)
        assert len(rest) == len(full[step * 6 :])
        assert all(same(a, b) for a, b in zip(rest, full[step * 6 :], strict=True))


def test_a_resume_on_other_ranks_with_another_batch_size_goes_on_in_the_same_order(data: DataConfig) -> None:
    segments = resolve_segments(data.stages, S, 12)
    rows = [row for step in expected_rows(data, segments) for row in step]
    now = resolve_segments(data.stages, S, 6, history=truncate(segments, 2))
    ranks = [collect(data, now, b=1, rank=rank, world=2, start_step=2) for rank in range(2)]
    taken = [batch.tokens[0].tolist() for pair in zip(*ranks, strict=True) for batch in pair]
    assert taken[:12] == rows[24:36]  # the rest of the stage: two steps of 6


def test_context_ranks_together_have_the_targets_of_the_padded_rows(data: DataConfig, segments: list[Segment]) -> None:
    ranks = [collect(data, segments, context=ContextRank(rank, 2)) for rank in range(2)]
    datasets = {name: TokenDataset(folder, S, name) for name, folder in data.datasets.items()}
    order = Order(segments, data.seed, {name: dataset.num_windows for name, dataset in datasets.items()})
    places = order.locate_range(0, 2)
    row = pack([datasets[p.dataset].window(p.window) for p in places], multiple=4).expand()
    first = [rank[0] for rank in ranks]
    assert [part.tokens.shape for part in first] == [(1, S), (1, S)]  # half of two windows each
    assert sorted(torch.cat([part.tokens for part in first], 1)[0].tolist()) == sorted(row.tokens[0].tolist())
    assert sum(float(part.loss_mask.sum()) for part in first) == float(row.loss_mask.sum())
    loaders = [HeldOutLoader(data, "held", 5, 2, 0, 1, CPU, context=ContextRank(rank, 2)) for rank in range(2)]
    held = [next(iter(loader)).tokens.shape for loader in loaders]
    assert held == [(1, S), (1, S)]


@pytest.mark.parametrize("worlds", [(1, 2, 4), (4, 2, 1), (2, 4, 2)])
def test_each_global_batch_stays_the_same_when_the_ranks_change(data: DataConfig, worlds: tuple[int, int, int]) -> None:
    """Resumed on other numbers of ranks at steps 2 and 5: in mid-stage, and in the middle of both datasets' epochs."""
    segments = resolve_segments(data.stages, S, 12)
    order = expected_rows(data, segments)
    for world, first, end in zip(worlds, (0, 2, 5), (2, 5, 7), strict=True):
        ranks = [collect(data, segments, 3, rank, world, start_step=first) for rank in range(world)]
        per_step = 12 // (world * 3)
        for step in range(first, end):
            taken = []
            for micro_batch in range((step - first) * per_step, (step - first + 1) * per_step):
                for rank in range(world):
                    taken += ranks[rank][micro_batch].tokens.reshape(3, S).tolist()
            assert taken == order[step]


def test_dozens_of_datasets_in_many_shards_with_windows_of_several_lengths(make_dataset: Callable) -> None:
    """46 datasets, 1,380 shards, read as 16, 128 and 256 tokens a window."""
    text = [np.array([*f"document {i} of many ".encode(), 256]) for i in range(600)]
    folders = {f"set-{i:02d}": str(make_dataset(f"set-{i:02d}", text[i:], shards=30).folder) for i in range(46)}
    stage = StageConfig(name="all", steps=3, weights={name: 1.0 + i for i, name in enumerate(folders)})
    for length in (16, 128, 256):
        data = DataConfig(tokenizer="byte-level", sequence_length=length, datasets=folders, stages=[stage])
        segments = resolve_segments(data.stages, length, 48)
        loader = TrainLoader(data, segments, 16, 0, 1, CPU)
        assert len(loader.datasets) == 46
        assert [batch.tokens.shape[1] for batch in loader] == [16 * length] * 9
        loader.close()


def test_a_dataset_that_comes_or_goes_in_mid_run_repeats_nothing(data: DataConfig, make_dataset: Callable) -> None:
    """Within an epoch no window comes twice, though `more` pauses for a stage and a new dataset joins."""
    new = make_dataset("new")
    stages = [
        StageConfig(name="one", steps=3, weights={"text": 0.5, "more": 0.5}),
        StageConfig(name="two", steps=3, weights={"text": 0.5, "new": 0.5}),
        StageConfig(name="three", steps=3, weights={"more": 0.7, "new": 0.3}),
    ]
    data = data.model_copy(update={"stages": stages, "datasets": data.datasets | {"new": str(new.folder)}})
    segments = resolve_segments(stages, S, 12)
    sizes = {name: TokenDataset(folder, S).num_windows for name, folder in data.datasets.items()}
    places = Order(segments, data.seed, sizes).locate_range(0, 9 * 12)
    seen = [(place.dataset, place.epoch, place.window) for place in places]
    assert len(set(seen)) == len(seen) and {place.dataset for place in places} == set(data.datasets)
    resumed = [batch.tokens.tolist() for batch in collect(data, segments, start_step=4)]
    assert resumed == [batch.tokens.tolist() for batch in collect(data, segments)][4 * 6 :]


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_how_far_it_reads_ahead_changes_nothing(data: DataConfig, segments: list[Segment], prefetch: int) -> None:
    batches = collect(data, segments, prefetch=prefetch)
    assert all(same(a, b) for a, b in zip(batches, collect(data, segments), strict=True))


def test_the_end_is_the_end(data: DataConfig, segments: list[Segment]) -> None:
    loader = TrainLoader(data, segments, 2, 0, 1, CPU, start_step=6)
    assert loader.micro_batches(6) == 6
    assert len(list(loader)) == 6
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(loader)
    loader.close()
    loader.close()
    with pytest.raises(StopIteration):
        next(loader)


def test_closing_in_mid_run_is_clean(data: DataConfig, segments: list[Segment]) -> None:
    loader = TrainLoader(data, segments, 2, 0, 1, CPU)
    kept = next(loader)
    copy = kept.tokens.clone()
    loader.close()
    assert torch.equal(kept.tokens, copy)


def test_a_process_may_fork_in_mid_run(data: DataConfig, segments: list[Segment]) -> None:
    """As asynchronous checkpoints do: the child comes to an end, and the parent's batches go on."""
    loader = TrainLoader(data, segments, 2, 0, 1, CPU)
    next(loader)
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    rest = list(loader)
    child.join(timeout=30)
    assert child.exitcode == 0
    assert len(rest) == 7 * 6 - 1
    loader.close()


def test_a_dataset_that_only_the_past_used_need_not_be_there(data: DataConfig, segments: list[Segment]) -> None:
    gone = data.model_copy(update={"datasets": data.datasets | {"text": "/nowhere"}})
    loader = TrainLoader(gone, segments, 2, 0, 1, CPU, start_step=4)
    assert list(loader.digests) == ["more"]
    assert len(list(loader)) == 3 * 6
    loader.close()
    with pytest.raises(DataError, match=r"/nowhere/manifest\.json cannot be read"):
        TrainLoader(gone, segments, 2, 0, 1, CPU, start_step=3)


def test_a_fault_reaches_the_caller_as_itself_when_its_batch_is_due(make_dataset: Callable) -> None:
    docs = [np.arange(250)] * 16
    docs[9] = np.where(docs[9] == 30, 999, docs[9])
    data = DataConfig(
        tokenizer="byte-level",
        sequence_length=S,
        datasets={"text": str(make_dataset(docs=docs).folder)},
        stages=[StageConfig(name="s", steps=124, weights={"text": 1})],
    )
    segments = resolve_segments(data.stages, S, 1)
    order = Order(segments, 0, {"text": 4000 // S - 1})
    [due] = [step for step in range(124) if order.locate(step).window == (9 * 250 + 30) // S]
    loader = TrainLoader(data, segments, 1, 0, 1, CPU)
    for _ in range(due):
        next(loader)
    with pytest.raises(DataError, match=r"dataset text: 001_text\.ds has id 999 at token 280"):
        next(loader)
    loader.close()


@pytest.mark.parametrize(("b", "world"), [(5, 1), (1, 5), (8, 3)])
def test_a_batch_size_that_does_not_divide_is_refused(data: DataConfig, segments: list[Segment], b: int, world: int) -> None:
    with pytest.raises(
        DataError, match=rf"global_batch_size=12 .*micro_batch_size={b} x {world} data-parallel.* = {b * world};"
    ):
        TrainLoader(data, segments, b, 0, world, CPU)


def test_a_step_that_is_no_whole_number_of_groups_is_refused(data: DataConfig, segments: list[Segment]) -> None:
    TrainLoader(data, segments, 2, 0, 1, CPU, group=3).close()
    with pytest.raises(DataError, match=r"global_batch_size=12 .* gives each of 2 .* ranks 3 micro-batches of 2, no multiple"):
        TrainLoader(data, segments, 2, 0, 2, CPU, group=2)


def test_tokenizer_and_vocabulary_are_checked(data: DataConfig, segments: list[Segment]) -> None:
    with pytest.raises(DataError, match=r"model\.vocab_size=100"):
        TrainLoader(data, segments, 2, 0, 1, CPU, vocab_size=100)
    with pytest.raises(DataError, match=r"data\.tokenizer='other'"):
        TrainLoader(data.model_copy(update={"tokenizer": "other"}), segments, 2, 0, 1, CPU)


# --- held-out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("windows", "world", "b"), [(11, 1, 1), (11, 2, 2), (11, 3, 4), (1, 4, 1), (12, 2, 3)])
@pytest.mark.parametrize("group", [1, 4])
def test_held_out_windows_are_each_evaluated_once_by_ranks_in_step(
    data: DataConfig, windows: int, world: int, b: int, group: int
) -> None:
    dataset = TokenDataset(data.held_out["held"], S)
    loaders = [HeldOutLoader(data, "held", windows, b, rank, world, CPU, group=group) for rank in range(world)]
    ranks = [list(loader) for loader in loaders]
    assert {len(batches) for batches in ranks} == {-(-windows // (world * b * group)) * group} == {len(loaders[0])}
    seen = []
    for number in range(len(loaders[0])):
        for rank in range(world):
            batch = ranks[rank][number]
            assert batch.tokens.shape == (1, b * S)
            for tokens, mask in zip(batch.tokens.reshape(b, S), batch.loss_mask.reshape(b, S), strict=True):
                if mask.any():
                    seen.append(tokens.tolist())
    assert seen == [dataset.window(i).tokens[:-1].tolist() for i in range(windows)]
    assert sum(float(batch.loss_mask.sum()) for batches in ranks for batch in batches) == sum(
        pack([dataset.window(i)]).expand().loss_mask.sum() for i in range(windows)
    )


def test_an_unknown_held_out_set_is_refused_with_the_near_ones(data: DataConfig) -> None:
    with pytest.raises(DataError, match=r"held-out dataset 'hold' is not in data\.held_out; did you mean 'held'"):
        HeldOutLoader(data, "hold", 1, 1, 0, 1, CPU)


def test_a_held_out_loader_gives_the_same_again_and_again(data: DataConfig) -> None:
    loader = HeldOutLoader(data, "held", 10**6, 4, 0, 1, CPU)
    assert loader.windows == TokenDataset(data.held_out["held"], S).num_windows
    for _ in loader:
        break  # an iteration given up half-way leaves nothing behind
    first, second = list(loader), list(loader)
    assert len(first) == len(loader)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    loader.close()
