"""Which window a sample is: the data order as a pure function of (segments, seed, sample number), with no index at all.

    sample n --stage--> local index --mixture quotas--> dataset, position --permutation--> epoch, window

1. A stage's samples are numbered from where the stage before it ended, skipped samples included: the windows of a skipped
   range are passed over, not put off. All segments of a stage are one sequence, so a change of batch size does not restart it.
2. The dataset of local index n is the one whose interval of cumulative weights holds frac(n * golden ratio), datasets in
   the order of their names. Its position is what it has given in all earlier stages plus its count below n, a floor sum.
3. epoch = position // windows, and the window is a Feistel permutation of position % windows keyed by (seed, dataset, epoch):
   each window once per epoch, in a new order each epoch.

Cost: microseconds a sample at any n, the same memory for any length. Any change here reorders runs in flight: the algorithm
has a version, which checkpoints store, and golden vectors hold it in the tests.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from itertools import accumulate, groupby
from math import isqrt
from typing import Any, NamedTuple

import numpy as np

from smol_data.manifest import DataError
from smol_data.permutation import permute, permute_many, round_keys
from smol_data.schedule import Segment, segment_of, truncate

ORDER_VERSION = 1


# --- mixture: which dataset, and how many it has given -------------------------------------------------------------------

_ONE = 1 << 128  # fixed point: with 64 bits the golden ratio's evenness is lost near 1e10 samples
_GOLDEN = ((isqrt(5 << 256) - _ONE) >> 1) | 1  # floor((sqrt(5) - 1) / 2 * 2**128) in exact integers, made odd for a full period


class Mixture:
    """Weighted choice of a dataset for every index n of 0, 1, 2, ...: a Kronecker sequence with the golden ratio.

    Any stretch of indices holds each dataset's share to within a few samples. Weights are taken as exact fractions over
    their sum, so the result is the same on every machine; datasets of weight 0 are left out.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.names = sorted(name for name, weight in weights.items() if weight > 0)
        shares = [Fraction(weights[name]) for name in self.names]
        total = sum(shares)
        self._edges = [int(below / total * _ONE) for below in accumulate(shares, initial=Fraction(0))]

    def choose(self, n: int) -> int:
        """Index into `names` of the dataset of index n."""
        return bisect_right(self._edges, n * _GOLDEN % _ONE) - 1

    def count(self, choice: int, n: int) -> int:
        """How many of the indices 0 .. n - 1 go to `names[choice]`, exactly, in O(log n).

        x mod M lies in [low, high) exactly when floor((x + M - low) / M) - floor((x + M - high) / M) is 1, else that is 0.
        """
        low, high = self._edges[choice : choice + 2]
        return _floor_sum(n, _ONE, _GOLDEN, _ONE - low) - _floor_sum(n, _ONE, _GOLDEN, _ONE - high)


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Sum of floor((a*i + b) / m) over 0 <= i < n, by Euclid's algorithm (Graham, Knuth, Patashnik, Concrete Mathematics, 3.5).

    What is left once a, b < m counts lattice points under a line; swapping the axes shrinks the problem as a gcd does.
    """
    whole = n * (n - 1) // 2 * (a // m) + n * (b // m)
    a, b = a % m, b % m
    height, rest = divmod(a * n + b, m)
    return whole + _floor_sum(height, a, m, rest) if height else whole


# --- order: the two together -----------------------------------------------------------------------------------------


class Location(NamedTuple):
    """What a sample is."""

    sample: int
    stage: str
    dataset: str
    epoch: int
    window: int


class _Stage(NamedTuple):
    """All segments of a stage: samples [first, end), skipped ones included."""

    name: str
    first: int
    end: int
    mixture: Mixture
    before: dict[str, int]
    """Samples that each dataset has given in earlier stages."""

    def after(self) -> dict[str, int]:
        given = {name: self.mixture.count(i, self.end - self.first) for i, name in enumerate(self.mixture.names)}
        return self.before | {name: self.before.get(name, 0) + count for name, count in given.items()}


def _stages(segments: Sequence[Segment]) -> list[_Stage]:
    stages: list[_Stage] = []
    for name, group in groupby(segments, key=lambda segment: segment.stage):
        *_, last = group
        first, before = (stages[-1].end, stages[-1].after()) if stages else (0, {})
        stages.append(_Stage(name, first, last.end_sample, Mixture(last.weights), before))
    return stages


def dataset_positions(segments: Sequence[Segment]) -> dict[str, int]:
    """Samples that each dataset has given to `segments`, skipped ones counted: its position in its own sequence of epochs."""
    stages = _stages(segments)
    return stages[-1].after() if stages else {}


class Order:
    """The order of a run. `windows` gives each dataset's number of windows; datasets that are not located may lack."""

    def __init__(self, segments: Sequence[Segment], seed: int, windows: Mapping[str, int]) -> None:
        self.segments = list(segments)
        self.seed = seed
        self._windows = dict(windows)
        self._stage_of = {stage.name: stage for stage in _stages(segments)}

    def locate(self, sample: int) -> Location:
        """Where one sample comes from; raises DataError for a sample that no segment trains."""
        stage = self._stage_of[segment_of(self.segments, sample).stage]
        local = sample - stage.first
        choice = stage.mixture.choose(local)
        dataset = stage.mixture.names[choice]
        position = stage.before.get(dataset, 0) + stage.mixture.count(choice, local)
        epoch, index = divmod(position, self._size(dataset))
        window = permute(index, self._size(dataset), self._keys(dataset, epoch))
        return Location(sample, stage.name, dataset, epoch, window)

    def locate_range(self, first: int, stop: int) -> list[Location]:
        """`locate` for samples [first, stop), with one floor sum a dataset and one permutation a dataset and epoch."""
        found: list[Location] = []
        while first < stop:
            segment = segment_of(self.segments, first)
            end = min(stop, segment.end_sample)
            found += self._locate_in(self._stage_of[segment.stage], first, end)
            first = end
        return found

    def _locate_in(self, stage: _Stage, first: int, end: int) -> list[Location]:
        position: dict[int, int] = {}  # of each dataset's next sample
        groups: dict[tuple[str, int], list[tuple[int, int]]] = {}  # (dataset, epoch) -> (sample, index in the epoch)
        for sample in range(first, end):
            local = sample - stage.first
            choice = stage.mixture.choose(local)
            dataset = stage.mixture.names[choice]
            if choice not in position:
                position[choice] = stage.before.get(dataset, 0) + stage.mixture.count(choice, local)
            epoch, index = divmod(position[choice], self._size(dataset))
            position[choice] += 1
            groups.setdefault((dataset, epoch), []).append((sample, index))
        found = []
        for (dataset, epoch), members in groups.items():
            indices = np.array([index for _, index in members], dtype=np.uint64)
            windows = permute_many(indices, self._size(dataset), self._keys(dataset, epoch)).tolist()
            found += [Location(members[i][0], stage.name, dataset, epoch, window) for i, window in enumerate(windows)]
        return sorted(found)

    def _keys(self, dataset: str, epoch: int) -> list[int]:
        return round_keys("smol_data.order", ORDER_VERSION, self.seed, dataset, epoch)

    def _size(self, dataset: str) -> int:
        if dataset not in self._windows:
            raise DataError(f"dataset {dataset!r} has a share in this stage but is not open; add its folder to data.datasets")
        return self._windows[dataset]


# --- fingerprint: what a checkpoint stores, and what a resume may change ---------------------------------------------------


def fingerprint(
    segments: Sequence[Segment], step: int, seed: int, sequence_length: int, digests: Mapping[str, str]
) -> dict[str, Any]:
    """What a checkpoint at `step` stores of the data, JSON-able. `segments` are the whole run's.

    `digests` are the manifests' of every dataset at hand; a resumed run adds those of its checkpoint's datasets that it no
    longer opens: `{**stored["manifests"], **now}`.
    """
    history = truncate(segments, step)
    done = len(history) - 1
    rest = [s for i, s in enumerate(segments) if i > done or (i == done and s.steps > history[i].steps)]
    return {
        "order_version": ORDER_VERSION,
        "seed": seed,
        "sequence_length": sequence_length,
        "history": [asdict(segment) for segment in history],
        "planned": [asdict(segment) for segment in rest],
        "positions": dataset_positions(history),
        "manifests": dict(sorted(digests.items())),
    }


def history_of(stored: Mapping[str, Any]) -> list[Segment]:
    """The frozen segments in a stored fingerprint, for `resolve_segments(history=...)`."""
    return [Segment(**segment) for segment in stored["history"]]


def check_fingerprint(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compare a checkpoint's fingerprint with the one this run would store at the same step.

    Raises DataError, showing both values, when the order's version, the seed, the sequence length, the history or the manifest
    of a dataset already consumed differ. Returns a line for each difference that is allowed: datasets, later stages.
    """
    settings = {
        "order_version": "version of the data order",
        "seed": "data.seed",
        "sequence_length": "data.sequence_length",
        "history": "history of segments",
    }
    for key, setting in settings.items():
        if stored[key] != now[key]:
            raise DataError(
                f"the {setting} is {now[key]}, but the checkpoint was trained with {stored[key]}; put it back, "
                "or begin a new data order with start_from.data_position=false"
            )
    old, new = stored["manifests"], now["manifests"]
    for name, position in stored["positions"].items():
        if position and name in old and name in new and old[name] != new[name]:
            raise DataError(
                f"dataset {name!r} has manifest digest {new[name]}, but {position} samples are trained of the one with "
                f"{old[name]}; put the old folder back, or give the new data a name of its own in a later stage"
            )
    lines = [f"dataset {name!r} is new" for name in sorted(new.keys() - old.keys())]
    lines += [f"dataset {name!r} is no longer there" for name in sorted(old.keys() - new.keys())]
    lines += [
        f"dataset {name!r}, not yet trained on, has changed"
        for name in sorted(old.keys() & new.keys())
        if old[name] != new[name]
    ]
    if stored["planned"] != now["planned"]:
        lines += [f"planned before: {_sentence(segment)}" for segment in stored["planned"]]
        lines += [f"planned now: {_sentence(segment)}" for segment in now["planned"]]
    return lines


def _sentence(segment: Mapping[str, Any]) -> str:
    s = Segment(**segment)
    steps = f"{s.stage}, steps {s.first_step} to {s.end_step - 1}"
    return f"{steps}, from sample {s.first_sample}, {s.batch_size} samples a step, weights {s.weights}"
