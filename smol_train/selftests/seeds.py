"""`seeds`: initial weights differ on tensor-parallel ranks and pipeline stages, and agree where ranks hold the same weights.

In every layout that the ranks allow, parameter by parameter:

    split over tensor-parallel ranks     parts of two ranks are independent draws
    whole on every tensor-parallel rank  equal bit for bit (norms)
    pipeline stages                      the same weight of two stages' layers: independent draws; tied copies: equal
    data-parallel and context ranks      equal bit for bit

Independent draws of n numbers correlate by about 1/sqrt(n); six times that comes by chance once in 10^9. One seed on all
tensor-parallel ranks, the fault that cost SmolLM3 a restart after a trillion tokens, correlates by 1.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smol_train.config import RunConfig
from smol_train.selftests.base import Setting, Verdict, skipped, verdict
from smol_train.selftests.layouts import Placed, allowed

SAMPLE = 4096
"""Numbers of a weight that are compared for correlation."""
SIGMAS = 6.0


class Weight(NamedTuple):
    """One parameter of one rank."""

    split: bool
    """Whether tensor-parallel ranks hold parts of it."""
    digest: str
    sample: NDArray[np.float32]
    """Evenly spaced over it."""


class RankWeights(NamedTuple):
    """What a rank initialised."""

    tensor: int
    pipeline: int
    copy: tuple[int, int]
    """Data-parallel and context rank: ranks that differ in these alone hold the same weights."""
    weights: dict[str, Weight]
    """By name in a checkpoint."""


def check(setting: Setting) -> Verdict:
    if setting.world_size == 1:
        return skipped("one rank shares its weights with nobody; start more, e.g. --ranks 2, or under torchrun")
    layouts, refused = allowed(setting.config, setting.world_size)
    faults, details = [], [f"not looked at, {reason}" for reason in refused]
    for placed in layouts:
        found = compare(_initial(setting, placed))
        faults += [f"{placed.name}: {found.fault}"] if found.fault else []
        details += [] if found.fault else [f"{placed.name}: {found.drawn} pairs drawn independently, {found.equal} equal"]
    names = ", ".join(placed.name for placed in layouts)
    return verdict(faults, f"initial weights differ where they must and agree where they must in {names}", details)


class Found(NamedTuple):
    """Pairs of parameters that were compared until the first that is at fault."""

    drawn: int
    equal: int
    fault: str


def compare(ranks: list[RankWeights]) -> Found:
    """What the module's docstring says, over all pairs of ranks."""
    drawn = equal = 0
    for (number, one), (other_number, other) in combinations(enumerate(ranks), 2):
        where = f"on ranks {number} and {other_number}"
        for name, mine, theirs, must_agree in _pairs(one, other):
            if must_agree:
                equal += 1
                if mine.digest != theirs.digest:
                    return Found(drawn, equal, f"{name} differs {where}, which hold the same weights")
            elif (likeness := correlation(mine.sample, theirs.sample)) is not None:
                drawn += 1
                if abs(likeness) > SIGMAS / len(mine.sample) ** 0.5:
                    return Found(drawn, equal, f"{name} was drawn alike {where} (correlation {likeness:.2f})")
    return Found(drawn, equal, "")


def _pairs(one: RankWeights, other: RankWeights) -> Iterator[tuple[str, Weight, Weight, bool]]:
    """(name, the two weights, whether they must agree) of two ranks."""
    same_tensor = one.tensor == other.tensor
    if one.pipeline == other.pipeline:
        for name, mine in one.weights.items():
            yield name, mine, other.weights[name], same_tensor or not mine.split
        return
    if one.copy != other.copy:
        return
    for name in one.weights.keys() & other.weights.keys():  # a tied embedding lies on the first and on the last stage
        yield name, one.weights[name], other.weights[name], same_tensor or not one.weights[name].split
    theirs = dict(_by_place(other.weights))
    for place, name in _by_place(one.weights):
        if place in theirs and one.weights[name].split:
            yield f"{name} (against {theirs[place]})", one.weights[name], other.weights[theirs[place]], False


def _by_place(weights: Iterable[str]) -> Iterator[tuple[tuple[int, str], str]]:
    """((place of the layer in its stage, name in the layer), whole name) of the parameters of layers."""
    parts = {name: match for name in weights if (match := re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name))}
    first = min((int(match[1]) for match in parts.values()), default=0)
    for name, match in parts.items():
        yield (int(match[1]) - first, match[2]), name


def correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Pearson's; None where one is constant, or they are of two shapes."""
    if one.shape != other.shape or not one.std() or not other.std():
        return None
    return float(np.corrcoef(one, other)[0, 1])


def _initial(setting: Setting, placed: Placed) -> list[RankWeights]:
    return setting.crew.run(initial_weights, placed.world_size, config=placed.config)


def initial_weights(config: RunConfig) -> RankWeights:
    """A job: this rank's weights as the trainer initialises them."""
    from megatron.core import parallel_state

    from smol_train import parallel
    from smol_train.model import build_chunks
    from smol_train.optim import parameter_names

    with parallel.process_groups(config.parallel, config.train.seed) as ranks:
        chunks = build_chunks(config)
        return RankWeights(
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_pipeline_model_parallel_rank(),
            (ranks.data_parallel_rank, ranks.context.rank),
            {name: _weight(parameter) for name, parameter in parameter_names(chunks).items()},
        )


def _weight(parameter: Any) -> Weight:
    values = parameter.detach().float().cpu().flatten().numpy()
    sample = values[np.linspace(0, len(values) - 1, min(SAMPLE, len(values)), dtype=np.int64)]
    split = bool(getattr(parameter, "tensor_model_parallel", False))
    return Weight(split, hashlib.sha256(values.tobytes()).hexdigest(), sample)
