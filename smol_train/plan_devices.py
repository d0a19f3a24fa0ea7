"""On how many devices a configuration can run: its layout and its batches must divide over them. plan.py and sizing.py ask."""

import math

from smol_config import ConfigError
from smol_train.config import RunConfig
from smol_train.sections.run import TrainConfig


def devices(config: RunConfig, gpus: int | None) -> tuple[int, int]:
    """Number of devices and copies of the model on them; None: as many as give every rank one micro-batch a step.

    Raises ConfigError, with the nearest number that fits, where layout or batch do not divide.
    """
    ranks, train = config.parallel.model_ranks, config.train
    rows = _rows(config)
    if gpus is None:
        gpus = ranks * rows // config.parallel.micro_batch_group
    if gpus < 1 or gpus % ranks:
        raise ConfigError(
            f"gpus={gpus} is not a multiple of the {ranks} ranks that hold one copy of the model (parallel.tensor="
            f"{config.parallel.tensor} x pipeline={config.parallel.pipeline} x context={config.parallel.context}); "
            f"give {max(gpus // ranks, 1) * ranks}, or change parallel"
        )
    copies = gpus // ranks
    if rows % copies:
        fits = max(divisor for divisor in range(1, copies) if rows % divisor == 0)
        raise ConfigError(
            f"gpus={gpus} make {copies} copies of the model, which cannot share {_batches(train)} in rows of "
            f"train.micro_batch_size={train.micro_batch_size} evenly; "
            f"give {fits * ranks}, or change the batch"
        )
    if rows // copies % config.parallel.micro_batch_group:
        raise ConfigError(
            f"gpus={gpus} give each rank {rows // copies} micro-batches a step, no multiple of parallel.pipeline="
            f"{config.parallel.pipeline}, which parallel.virtual_pipeline={config.parallel.virtual_pipeline} needs; change the "
            f"batch or the number of GPUs"
        )
    return gpus, copies


def next_devices(config: RunConfig, least: float) -> int | None:
    """The smallest number of devices, at least `least`, that devices() accepts; None where the batch is too small for any."""
    ranks, rows, group = config.parallel.model_ranks, _rows(config), config.parallel.micro_batch_group
    fitting = (copies * ranks for copies in range(1, rows + 1) if rows % copies == 0 and rows // copies % group == 0)
    return next((gpus for gpus in fitting if gpus >= least), None)


def _rows(config: RunConfig) -> int:
    """Micro-batches of a step over all copies: what every batch of a ramp is a multiple of."""
    return math.gcd(*(size for _, size in config.train.batch_sizes)) // config.train.micro_batch_size


def _batches(train: TrainConfig) -> str:
    ramp = [size for _, size in train.batch_sizes[:-1]]
    return f"train.global_batch_size={train.global_batch_size}" + (f" and train.batch_ramp's {ramp}" if ramp else "")
