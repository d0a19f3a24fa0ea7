"""Which layouts so many ranks allow, and short runs in them."""

from collections.abc import Iterator
from typing import NamedTuple

from smol_config import ConfigError
from smol_train.config import RunConfig

LARGEST_TENSOR = 8
"""Tensor parallelism stays inside a node."""


class Placed(NamedTuple):
    """A configuration laid out on the first `world_size` ranks."""

    name: str
    config: RunConfig
    world_size: int

    @property
    def model_layout(self) -> tuple[int, int]:
        """What decides which weights a rank holds."""
        return self.config.parallel.tensor, self.config.parallel.pipeline


def configured(config: RunConfig, world_size: int) -> Placed:
    """The configuration's own layout on all ranks; raises ConfigError when they do not fit it."""
    parallel = config.parallel
    if world_size % parallel.model_ranks:
        raise ConfigError(
            f"{world_size} ranks do not divide into copies of parallel.tensor={parallel.tensor} x pipeline={parallel.pipeline} "
            f"x context={parallel.context} = {parallel.model_ranks} ranks; start a multiple of {parallel.model_ranks} or "
            f"change the layout"
        )
    placed = _placed(config, world_size)
    if problems := _problems(placed):
        raise ConfigError(problems[0])
    return placed


def allowed(config: RunConfig, world_size: int) -> tuple[list[Placed], list[str]]:
    """(layouts to compare, why others are not among them): the configuration's own first, then the widest tensor, pipeline
    and data parallelism that fit the ranks, and all three at once. Context parallelism stays as configured."""
    layouts, refused = [configured(config, world_size)], []
    for candidates in _candidates(config, world_size):
        reason = ""
        for tensor, pipeline, data in candidates:
            placed = _laid_out(config, tensor, pipeline, data)
            problems = _problems(placed)
            if not problems:
                if placed.name not in [one.name for one in layouts]:
                    layouts.append(placed)
                break
            reason = f"{placed.name}: {problems[0]}"
        else:
            refused.append(reason)
    return layouts, refused


def one_rank(config: RunConfig) -> Placed:
    """The whole model on one rank, or on as many as share a row's tokens."""
    return _laid_out(config, 1, 1, 1)


def _candidates(config: RunConfig, world_size: int) -> Iterator[list[tuple[int, int, int]]]:
    """(tensor, pipeline, data), widest first; the first of each list that fits is taken."""
    ranks = world_size // config.parallel.context
    widths = range(ranks, 1, -1)
    groups = [
        [(width, 1, 1) for width in widths if width <= LARGEST_TENSOR and width & (width - 1) == 0],
        [(1, width, 1) for width in widths],
        [(1, 1, width) for width in widths],
        [(2, 2, width) for width in range(ranks // 4, 0, -1)],
    ]
    return (group for group in groups if group)


def _laid_out(config: RunConfig, tensor: int, pipeline: int, data: int) -> Placed:
    changes = {"tensor": tensor, "pipeline": pipeline, "virtual_pipeline": 1, "sequence": tensor > 1}
    parallel = config.parallel.model_copy(update=changes)
    return _placed(config.model_copy(update={"parallel": parallel}), parallel.model_ranks * data)


def _placed(config: RunConfig, world_size: int) -> Placed:
    parallel = config.parallel
    sizes = {"TP": parallel.tensor, "PP": parallel.pipeline, "VPP": parallel.virtual_pipeline, "CP": parallel.context}
    sizes["DP"] = world_size // parallel.model_ranks
    name = " x ".join(f"{label}{size}" for label, size in sizes.items() if size > 1) or "one rank"
    return Placed(f"{name} with SP" if parallel.sequence else name, config, world_size)


def _problems(placed: Placed) -> list[str]:
    """Why the ranks cannot be laid out so, by the configuration's own checks and the division of the batch."""
    train, copies = placed.config.train, placed.world_size // placed.config.parallel.model_ranks
    found = placed.config.problems()
    if train.global_batch_size % (train.micro_batch_size * copies):
        found.append(
            f"train.global_batch_size={train.global_batch_size} does not divide into rows of train.micro_batch_size="
            f"{train.micro_batch_size} on {copies} copies of the model; change one of them or the number of ranks"
        )
    return found
