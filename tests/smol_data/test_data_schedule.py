"""Segments: whole steps of whole batches, skipped ranges, and a past that never moves."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smol_data.config import StageConfig
from smol_data.manifest import DataError
from smol_data.schedule import (
    Segment,
    batch_at,
    resolve_segments,
    samples_before,
    segment_of,
    step_of,
    total_steps,
    truncate,
)

S = 16
EVEN = {"a": 1.0, "b": 1.0}


def stage(
    name: str, steps: int | None = None, tokens: int | None = None, weights: dict[str, float] | None = None
) -> StageConfig:
    return StageConfig(name=name, steps=steps, tokens=tokens, weights=EVEN if weights is None else weights)


TWO = [stage("stable", steps=10), stage("decay", steps=5, weights={"a": 1.0})]


def test_stages_follow_each_other_in_steps_and_samples() -> None:
    assert resolve_segments(TWO, S, 4) == [
        Segment("stable", EVEN, 0, 10, 0, 4),
        Segment("decay", {"a": 1.0}, 10, 5, 40, 4),
    ]


def test_a_length_in_tokens_is_rounded_up_to_steps() -> None:
    assert [total_steps(resolve_segments([stage("s", tokens=t)], S, 4)) for t in (1, 64, 65, 640)] == [1, 1, 2, 10]


def test_segments_survive_json() -> None:
    segments = resolve_segments(TWO, S, 4)
    assert [Segment(**mapping) for mapping in json.loads(json.dumps([asdict(s) for s in segments]))] == segments


def test_a_ramp_of_batch_sizes_counts_tokens_as_they_are_trained() -> None:
    segments = resolve_segments([stage("s", tokens=10 * 2 * S + 3 * 8 * S - 1)], S, [(0, 2), (10, 8)])
    assert [(s.first_step, s.steps, s.first_sample, s.batch_size) for s in segments] == [(0, 10, 0, 2), (10, 3, 20, 8)]


def test_questions_about_steps_and_samples() -> None:
    segments = resolve_segments(TWO, S, 4, skip_samples=[(8, 9)])
    assert batch_at(segments, 1) == (4, 4, "stable")
    assert batch_at(segments, 2) == (12, 4, "stable")
    assert batch_at(segments, 14) == (60, 4, "decay")
    assert [step_of(segments, sample) for sample in (7, 12, 63)] == [1, 2, 14]
    assert segment_of(segments, 44).stage == "decay"
    assert [samples_before(segments, step) for step in (0, 2, 3, 15, 99)] == [0, 8, 12, 60, 60]
    assert truncate(segments, 0) == []
    with pytest.raises(DataError, match="step 15 is outside the run of 15 steps"):
        batch_at(segments, 15)
    with pytest.raises(DataError, match="sample 8 is not trained"):
        step_of(segments, 8)
    with pytest.raises(DataError, match="sample 64 is outside the run"):
        step_of(segments, 64)


# --- skipped ranges ---------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    size=st.integers(1, 5),
    spans=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 20)), max_size=4),
)
def test_a_batch_that_touches_a_skipped_range_is_passed_over_whole(lengths: list[int], size: int, spans: list) -> None:
    skips = [(first, first + length) for first, length in spans]
    stages = [stage(f"s{i}", steps=steps) for i, steps in enumerate(lengths)]
    segments = resolve_segments(stages, S, size, skips)

    expected, sample = [], 0
    for config in stages:
        for _ in range(config.steps):
            while any(first < sample + size and sample < end for first, end in skips):
                sample += size
            expected.append((sample, size, config.name))
            sample += size
    assert [batch_at(segments, step) for step in range(total_steps(segments))] == expected
    for step in range(len(expected) + 1):
        assert resolve_segments(stages, S, size, skips, history=truncate(segments, step)) == segments


def test_a_skip_ahead_of_a_resume_takes_effect() -> None:
    history = truncate(resolve_segments(TWO, S, 4), 3)
    segments = resolve_segments(TWO, S, 4, [(14, 15)], history)
    assert batch_at(segments, 2).first_sample == 8
    assert batch_at(segments, 3).first_sample == 16
    assert total_steps(segments) == 15


@pytest.mark.parametrize("skips", [[(4, 5)], []])
def test_a_skip_behind_a_resume_may_not_change(skips: list[tuple[int, int]]) -> None:
    history = truncate(resolve_segments(TWO, S, 4, [] if skips else [(4, 5)]), 6)
    with pytest.raises(DataError, match=r"data\.skip_samples=.* changes the past"):
        resolve_segments(TWO, S, 4, skips, history)


# --- history ----------------------------------------------------------------------------------------------------------


def test_the_past_does_not_move_when_the_batch_size_changes() -> None:
    before = resolve_segments(TWO, S, 4)
    now = resolve_segments(TWO, S, 6, history=truncate(before, 7))
    assert now == [
        Segment("stable", EVEN, 0, 7, 0, 4),
        Segment("stable", EVEN, 7, 3, 28, 6),
        Segment("decay", {"a": 1.0}, 10, 5, 46, 6),
    ]
    assert resolve_segments(TWO, S, 4, history=truncate(now, 12))[:2] == now[:2]


def test_a_stage_in_tokens_keeps_its_tokens_when_the_batch_size_changes() -> None:
    stages = [stage("s", tokens=40 * S), stage("t", steps=1)]
    now = resolve_segments(stages, S, 8, history=truncate(resolve_segments(stages, S, 4), 5))
    assert [(s.steps, s.batch_size) for s in now if s.stage == "s"] == [(5, 4), (3, 8)]
    # Once it is over, the other batch size in the config does not make it look too short or too long.
    assert resolve_segments(stages, S, 3, history=truncate(now, 9)) == now


def test_the_stage_in_progress_may_grow_shrink_and_later_ones_change() -> None:
    history = truncate(resolve_segments(TWO, S, 4), 7)
    for steps in (7, 8, 1000):
        segments = resolve_segments([stage("stable", steps=steps), stage("other", steps=2)], S, 4, history=history)
        assert total_steps(segments) == steps + 2
        assert truncate(segments, 7) == history


@pytest.mark.parametrize(
    ("stages", "step", "message"),
    [
        ([stage("renamed", steps=10), TWO[1]], 3, "begin with .'renamed'.*already trained .'stable'"),
        (TWO[::-1], 12, "begin with .'decay', 'stable'.*already trained .'stable', 'decay'"),
        ([stage("stable", steps=10, weights={"a": 1.0}), TWO[1]], 3, "'stable' has weights .*trained it with"),
        ([stage("stable", steps=6), TWO[1]], 7, "'stable' has a length of 6 steps.*trained it for 7 steps"),
        ([stage("stable", tokens=6 * 4 * S), TWO[1]], 7, "'stable' has a length of 384 tokens.*7 steps, 448 tokens"),
        ([stage("stable", steps=11), TWO[1]], 12, "'stable' has a length of 11 steps.*gone on to the next stage"),
    ],
)
def test_a_config_that_disagrees_with_the_past_is_refused(stages: list[StageConfig], step: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        resolve_segments(stages, S, 4, history=truncate(resolve_segments(TWO, S, 4), step))


def test_a_ramp_may_change_ahead_of_a_resume_and_not_behind_it() -> None:
    history = truncate(resolve_segments(TWO, S, [(0, 2), (4, 6)]), 6)
    for ramp in ([(0, 2), (4, 8)], [(0, 2), (4, 6), (9, 12)], [(0, 2), (4, 6), (6, 12)], 12):
        segments = resolve_segments(TWO, S, ramp, history=history)
        assert truncate(segments, 6) == history
        assert total_steps(segments) == 15
    for ramp, message in (
        ([(0, 3), (4, 6)], "takes 3 samples in steps 0 to 3, but this run has trained steps 0 to 3 with 2;.* behind step 6"),
        ([(0, 2), (5, 6)], "takes 2 samples in steps 0 to 4, but this run has trained steps 4 to 4 with 6"),
        ([(0, 2), (4, 5), (9, 6)], "takes 5 samples in steps 4 to 8, but this run has trained steps 4 to 5 with 6"),
    ):
        with pytest.raises(DataError, match=message):
            resolve_segments(TWO, S, ramp, history=history)


def test_a_weight_of_zero_is_no_difference() -> None:
    history = truncate(resolve_segments(TWO, S, 4), 3)
    stages = [stage("stable", steps=10, weights=EVEN | {"c": 0.0}), TWO[1]]
    assert total_steps(resolve_segments(stages, S, 4, history=history)) == 15


def test_the_real_length_costs_nothing() -> None:
    stages = [stage("stable", steps=3_450_000), stage("decay", tokens=10**13)]
    segments = resolve_segments(stages, 4096, 576, [(10**9, 10**9 + 10**8)])
    assert len(segments) == 3
    assert samples_before(segments, total_steps(segments)) * 4096 >= 3_450_000 * 576 * 4096 + 10**13
