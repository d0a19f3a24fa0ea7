"""Where a run starts: from its own newest good checkpoint, from another run's (`start_from:`), or from its initial weights."""

import logging
from pathlib import Path

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from smol_train import checkpoint
from smol_train.checkpoint_folder import TrainState, set_aside
from smol_train.checkpoint_integrity import find, newest_good
from smol_train.config import RunConfig
from smol_train.sections.run import StartFromConfig

logger = logging.getLogger(__name__)

Damage = str
"""What was found to be damaged, in words."""


def restore(
    config: RunConfig, chunks: list[DistributedDataParallel], optimizer: MegatronOptimizer
) -> tuple[TrainState, list[Damage]]:
    """Load what there is into a built model and optimizer, on all ranks; returns the state to go on from, and the checkpoints
    that were passed over because they are damaged. Raises CheckpointError."""
    damage: list[Damage] = []

    def pass_over(folder: Path, fault: str) -> None:
        damage.append(f"checkpoint {folder} is damaged ({fault}): going on from an earlier one")
        _take_out(folder, damage[-1])

    run = Path(config.train.output_dir)
    if good := newest_good(run, config.checkpoint.verify, damaged=pass_over):
        state = checkpoint.load(good, config, chunks, optimizer, with_optimizer=True)
        logger.info("resumed from %s: step %d", good, state.step)
    elif config.start_from:
        state = _start_from(config, config.start_from, chunks, optimizer)
    else:
        state = TrainState()
    return state, damage


def _take_out(folder: Path, text: str) -> None:
    """Take a damaged checkpoint of this run out of the way of later saves, and of the rule that keeps the newest."""
    if torch.distributed.get_rank() == 0:
        logger.warning("%s", text)
        try:
            set_aside(folder, "damaged")
        except OSError as error:
            logger.warning("it cannot be renamed (%s) and stays where it is", error.strerror)


def _start_from(
    config: RunConfig, start: StartFromConfig, chunks: list[DistributedDataParallel], optimizer: MegatronOptimizer
) -> TrainState:
    folder = find(start.checkpoint, config.checkpoint.verify)
    state = checkpoint.load(folder, config, chunks, optimizer, with_optimizer=start.optimizer)
    logger.info(
        "started from %s: weights%s%s",
        folder,
        ", optimizer" if start.optimizer else "",
        f", data position (step {state.step})" if start.data_position else "",
    )
    return state if start.data_position else TrainState()
