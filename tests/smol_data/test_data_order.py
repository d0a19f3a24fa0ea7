"""The order: exact mixtures, each window once per epoch, positions that carry over, and golden vectors."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smol_config import load_mapping
from smol_data import order as order_module
from smol_data.config import StageConfig
from smol_data.manifest import DataError
from smol_data.order import Location, Mixture, Order, check_fingerprint, dataset_positions, fingerprint, history_of
from smol_data.schedule import Segment, resolve_segments, total_steps, truncate

CONFIGS = Path(__file__).parents[2] / "configs"
S = 16
WEIGHTS = {"web": 0.6, "code": 0.3, "math": 0.1}
WINDOWS = {"web": 41, "code": 17, "math": 7}
STAGES = [
    StageConfig(name="stable", steps=40, weights=WEIGHTS),
    StageConfig(name="middle", steps=30, weights={"web": 1.0, "math": 2.0}),
    StageConfig(name="decay", steps=30, weights={"math": 1.0, "code": 1.0, "books": 2.0, "web": 0.0}),
]
ALL_WINDOWS = WINDOWS | {"books": 29}


def order_of(segments: list[Segment], seed: int = 6) -> Order:
    return Order(segments, seed, ALL_WINDOWS)


def whole(order: Order) -> list[Location]:
    return [place for s in order.segments for place in order.locate_range(s.first_sample, s.end_sample)]


# --- mixture ----------------------------------------------------------------------------------------------------------

some_weights = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 10), min_size=1).filter(lambda w: sum(w.values()) > 0)


@settings(max_examples=40)
@given(some_weights, st.integers(0, 3000))
def test_counts_agree_with_counting(weights: dict[str, float], n: int) -> None:
    mixture = Mixture(weights)
    counted = Counter(mixture.choose(i) for i in range(n))
    assert [mixture.count(k, n) for k in range(len(mixture.names))] == [counted[k] for k in range(len(mixture.names))]


@settings(max_examples=40)
@given(some_weights, st.integers(0, 4 * 10**12))
def test_counts_are_exact_at_any_distance(weights: dict[str, float], n: int) -> None:
    mixture = Mixture(weights)
    choices = range(len(mixture.names))
    assert sum(mixture.count(k, n) for k in choices) == n
    assert [mixture.count(k, n + 1) - mixture.count(k, n) for k in choices] == [int(mixture.choose(n) == k) for k in choices]


@settings(max_examples=25)
@given(some_weights, st.integers(0, 4 * 10**12), st.sampled_from([96, 576]))
def test_every_global_batch_holds_the_mixture(weights: dict[str, float], first: int, size: int) -> None:
    mixture = Mixture(weights)
    for k, name in enumerate(mixture.names):
        exact = size * weights[name] / sum(weights.values())
        assert abs(mixture.count(k, first + size) - mixture.count(k, first) - exact) < 4


def test_the_mixture_does_not_drift_over_a_whole_run() -> None:
    mixture = Mixture(WEIGHTS)
    for n in np.geomspace(10, 4e12, 60).astype(int).tolist():
        assert all(abs(mixture.count(k, n) - n * WEIGHTS[name]) < 8 for k, name in enumerate(mixture.names))


SMOLLM3 = [
    stage
    for file in ("pretrain", "long_32k", "long_64k")
    for stage in load_mapping(CONFIGS / "smollm3" / f"{file}.yaml", keep_unset=True)["data"]["stages"]
]
"""Its five published mixtures; the smallest weight is 0.0000448."""


@pytest.mark.parametrize("stage", SMOLLM3, ids=lambda stage: stage["name"])
@settings(max_examples=30)
@given(n=st.integers(0, 4 * 10**9))
def test_smollm3s_mixtures_are_kept_at_every_prefix_and_in_every_batch(stage: dict, n: int) -> None:
    mixture, total = Mixture(stage["weights"]), sum(stage["weights"].values())
    for k, name in enumerate(mixture.names):
        share, count = stage["weights"][name] / total, mixture.count(k, n)
        assert abs(count - n * share) < 8
        assert abs(mixture.count(k, n + 576) - count - 576 * share) < 4


@settings(max_examples=60)
@given(some_weights, st.integers(0, 4 * 10**9))
def test_any_mixture_is_kept_at_every_prefix(weights: dict[str, float], n: int) -> None:
    mixture, total = Mixture(weights), sum(weights.values())
    assert all(abs(mixture.count(k, n) - n * weights[name] / total) < 8 for k, name in enumerate(mixture.names))


def test_only_the_ratio_of_weights_counts() -> None:
    mixtures = [Mixture(w) for w in ({"b": 3.0, "a": 1.0}, {"a": 2.0, "b": 6.0}, {"a": 1.0, "b": 3.0, "none": 0.0})]
    assert all(m.names == ["a", "b"] for m in mixtures)
    assert len({tuple(m.choose(n) for n in range(500)) for m in mixtures}) == 1


# --- windows and epochs -----------------------------------------------------------------------------------------------


def epochs(places: list[Location]) -> dict[tuple[str, int], list[int]]:
    """Windows by (dataset, epoch), in the order of training."""
    found: dict[tuple[str, int], list[int]] = {}
    for place in places:
        found.setdefault((place.dataset, place.epoch), []).append(place.window)
    return found


def test_each_window_comes_once_per_epoch_through_all_stages() -> None:
    """Positions carry over when weights change, when a dataset pauses, and when one comes later."""
    segments = resolve_segments(STAGES, S, 8)
    found = epochs(whole(order_of(segments)))
    for name, given_out in dataset_positions(segments).items():
        full, rest = divmod(given_out, ALL_WINDOWS[name])
        for epoch in range(full):
            assert sorted(found.pop((name, epoch))) == list(range(ALL_WINDOWS[name]))
        last = found.pop((name, full), [])
        assert len(set(last)) == len(last) == rest
    assert not found


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    segments = resolve_segments(STAGES[:1], S, 8)
    places = epochs(whole(order_of(segments)))
    assert places["web", 0] != places["web", 1]
    assert places["web", 0] != epochs(whole(order_of(segments, seed=7)))["web", 0]


def test_one_sample_and_a_range_agree() -> None:
    segments = resolve_segments(STAGES, S, 8, skip_samples=[(100, 130)])
    order = order_of(segments)
    places = whole(order)
    assert places == [order.locate(place.sample) for place in places]
    assert order.locate_range(300, 350) == [place for place in places if 300 <= place.sample < 350]


@pytest.mark.parametrize("size", [1, 5, 8, 40])
def test_a_sample_does_not_depend_on_the_batch_size(size: int) -> None:
    stages = [StageConfig(name="stable", steps=320 // size, weights=WEIGHTS)]
    assert whole(order_of(resolve_segments(stages, S, size))) == whole(order_of(resolve_segments(STAGES[:1], S, 8)))


def test_a_new_batch_size_in_mid_stage_goes_on_with_the_same_sequence() -> None:
    before = order_of(resolve_segments(STAGES, S, 8))
    now = order_of(resolve_segments(STAGES, S, 4, history=truncate(before.segments, 13)))
    assert whole(now)[: 13 * 8 + 27 * 4] == whole(before)[: 13 * 8 + 27 * 4]


def test_windows_of_a_skipped_range_are_not_put_off_but_passed_over() -> None:
    plain = order_of(resolve_segments([StageConfig(name="s", steps=60, weights=WEIGHTS)], S, 8))
    skipping = order_of(resolve_segments([StageConfig(name="s", steps=50, weights=WEIGHTS)], S, 8, [(80, 100), (0, 1)]))
    places = whole(skipping)
    assert len(places) == 400
    assert not any(place.sample < 8 or 80 <= place.sample < 104 for place in places)
    assert places == [plain.locate(place.sample) for place in places]


def test_a_range_skipped_at_a_stage_border_is_passed_over_by_the_later_stage() -> None:
    plain, skipping = (order_of(resolve_segments(STAGES, S, 8, skips)) for skips in ([], [(320, 325)]))
    assert skipping.locate_range(328, 400) == plain.locate_range(328, 400)


def test_locating_stays_exact_at_four_million_million_samples() -> None:
    far = 4 * 10**12
    segments = resolve_segments([StageConfig(name="s", steps=far // 576 + 10, weights=WEIGHTS)], 4096, 576)
    order = Order(segments, 6, {"web": 2_000_000_011, "code": 18_400_000, "math": 48_828})
    first = far // 576 * 576
    batch = order.locate_range(first, first + 576)
    assert batch == [order.locate(first + i) for i in range(576)]
    by_epoch = epochs(batch)
    assert all(len(set(windows)) == len(windows) for windows in by_epoch.values())
    assert sum(epoch for name, epoch in by_epoch if name == "math") > 8_000_000  # it has been round that often


def test_samples_that_are_not_there_are_refused() -> None:
    order = Order(resolve_segments(STAGES[:1], S, 8, [(16, 17)]), 6, {"web": 41, "math": 7})
    with pytest.raises(DataError, match="sample 17 is not trained"):
        order.locate(17)
    with pytest.raises(DataError, match="sample 328 is outside the run"):
        order_of(order.segments).locate_range(320, 340)
    with pytest.raises(DataError, match="dataset 'code' has a share in this stage but is not open"):
        order.locate_range(0, 16)


def test_the_order_is_frozen() -> None:
    """Changing these reorders every run in flight: raise ORDER_VERSION with them."""
    assert order_module.ORDER_VERSION == 1
    order = order_of(resolve_segments(STAGES, S, 8, [(100, 130)]))
    assert [tuple(order.locate(sample)) for sample in (0, 1, 2, 3, 95, 136, 345, 346, 600, 831)] == GOLDEN


GOLDEN = [
    (0, "stable", "code", 0, 11),
    (1, "stable", "web", 0, 14),
    (2, "stable", "code", 0, 4),
    (3, "stable", "web", 0, 35),
    (95, "stable", "web", 1, 17),
    (136, "stable", "code", 2, 1),
    (345, "stable", "code", 6, 14),
    (346, "stable", "web", 5, 37),
    (600, "decay", "books", 0, 3),
    (831, "decay", "math", 36, 5),
]


# --- fingerprint ------------------------------------------------------------------------------------------------------

DIGESTS = {"web": "w1", "code": "c1", "math": "m1", "books": "b1"}


def test_a_fingerprint_survives_json_and_gives_back_the_history() -> None:
    segments = resolve_segments(STAGES, S, 8)
    stored = json.loads(json.dumps(fingerprint(segments, 50, 6, S, DIGESTS)))
    assert history_of(stored) == truncate(segments, 50)
    assert stored["positions"] == dict(Counter(place.dataset for place in whole(order_of(segments))[:400]))
    assert check_fingerprint(stored, fingerprint(segments, 50, 6, S, DIGESTS)) == []


def test_what_is_ahead_may_change_and_is_told() -> None:
    segments = resolve_segments(STAGES, S, 8)
    stored = fingerprint(segments, 50, 6, S, DIGESTS)
    later = [*STAGES[:2], StageConfig(name="decay", steps=99, weights={"more": 1.0})]
    now = fingerprint(
        resolve_segments(later, S, 8, history=history_of(stored)),
        50,
        6,
        S,
        {"web": "w1", "math": "m1", "more": "x", "books": "b2"},
    )
    lines = "\n".join(check_fingerprint(stored, now))
    assert "dataset 'more' is new" in lines
    assert "dataset 'code' is no longer there" in lines
    assert "dataset 'books', not yet trained on, has changed" in lines
    assert "planned before: decay, steps 70 to 99" in lines
    assert "planned now: decay, steps 70 to 168" in lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, r"data\.seed is 7, but the checkpoint was trained with 6"),
        ({"sequence_length": 32}, r"data\.sequence_length is 32, but .* 16"),
        ({"order_version": 2}, "version of the data order is 2, but .* 1"),
        ({"history": []}, r"history of segments is \[\], but"),
        ({"manifests": DIGESTS | {"web": "w2"}}, "dataset 'web' has manifest digest w2, but 218 samples .* w1"),
    ],
)
def test_a_changed_past_is_refused_showing_both(change: dict, message: str) -> None:
    stored = fingerprint(resolve_segments(STAGES, S, 8), 50, 6, S, DIGESTS)
    with pytest.raises(DataError, match=message):
        check_fingerprint(stored, stored | change)


def test_planned_and_history_meet_at_the_step() -> None:
    segments = resolve_segments(STAGES, S, 8)
    for step in (0, 1, 39, 40, 41, 70, total_steps(segments)):
        stored = fingerprint(segments, step, 6, S, DIGESTS)
        assert len(stored["history"]) + len(stored["planned"]) == len(segments) + (step not in (0, 40, 70, 100))
