"""A loss or a gradient that is no number: did the computation make it, or a device that erred?

Megatron-Core's rerun state machine decides it: the step is computed again in place, from the same weights and batches.

    no number again     reproducible: these samples, or these weights; the update is left out (spikes.py)
    a number now        not reproducible: a device is suspected; the run ends with 85, without saving what it may have
                        spoiled, and names the node, so that the step is done on another one

The machine is not consulted otherwise: bf16 has no loss scale, so every step's reduced loss and norm are looked at before its
update anyway, and its own checks would wait for the device once a bucket of gradients.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.rerun_state_machine import (
    EXIT_CODE_RESUME_TO_DISAMBIGUATE,
    RerunMode,
    destroy_rerun_state_machine,
    get_rerun_state_machine,
    initialize_rerun_state_machine,
)
from torch import Tensor

from smol_train.batches import open_loader
from smol_train.launch import host_name
from smol_train.optim import gradient_norm

if TYPE_CHECKING:
    from smol_train.trainer import Trainer

SUSPECTS_NAME = "suspects.jsonl"

Where = Literal["loss", "gradient before it was reduced", "gradient"]
"""What was no number on a rank, beginning with what points to it most surely."""
PLACES: tuple[Where, ...] = ("loss", "gradient before it was reduced", "gradient")


@dataclass(frozen=True)
class Suspect:
    """A rank on which a number that was none may have begun."""

    rank: int
    host: str
    device: str
    where: Where
    pipeline_stage: int


@dataclass(frozen=True)
class Finding:
    """What a step's NaN or Inf came from."""

    reproducible: bool
    suspects: list[Suspect]
    """The ranks on which it began, as far as that can be told."""


class SuspectedDevice(Exception):
    """Ends the run so that it can be started again elsewhere."""

    def __init__(self, finding: Finding, step: int) -> None:
        self.finding, self.step = finding, step
        places = ", ".join(f"{one.host} {one.device} (rank {one.rank}: {one.where})" for one in finding.suspects)
        super().__init__(f"after step {step} a number was none and is one when computed again; suspected: {places}")


def examine(trainer: "Trainer", reports: list[Any]) -> Finding:
    """Compute again the step whose forward and backward pass left these reports and the gradients; on all ranks."""
    suspects = _suspects(trainer, reports)
    loader = open_loader(trainer.config, trainer.segments, trainer.ranks, trainer.state.step)
    batches = list(islice(loader, loader.micro_batches(trainer.state.step)))
    initialize_rerun_state_machine(mode=RerunMode.VALIDATE_RESULTS)
    try:
        machine = get_rerun_state_machine()
        machine.first_iteration_complete = True  # it takes the first it sees for the run's first, and does not judge that
        result = _number(reports, gradient_norm(trainer.optimizer))
        first = True
        while machine.should_run_forward_backward(None):
            if not first:
                trainer.clear_gradients()
                reports = trainer.forward_backward(iter(batches), len(batches), forward_only=False)
                result = _number(reports, gradient_norm(trainer.optimizer))
            first = False
            machine.validate_result(result, _is_none, "loss or gradient is no number", comparison_func=_differ)
        _, _, code = machine.should_checkpoint_and_exit()
    finally:
        destroy_rerun_state_machine()
        loader.close()
    return Finding(code == EXIT_CODE_RESUME_TO_DISAMBIGUATE, suspects)


def record(run: Path, found: SuspectedDevice) -> None:
    """Add the suspects to RUN/suspects.jsonl, for whoever picks the nodes of the next start."""
    with (run / SUSPECTS_NAME).open("a", encoding="utf8") as file:
        for suspect in found.finding.suspects:
            line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": found.step, **asdict(suspect)}
            file.write(json.dumps(line) + "\n")


def _number(reports: list[Any], norm: float) -> Tensor:
    """One number that is none when any of a rank's is."""
    return _loss(reports).cpu() + norm


def _is_none(result: Tensor) -> bool:
    return not bool(torch.isfinite(result))


def _differ(first: Tensor, again: Tensor) -> float:
    """As the machine compares: 0 for the same. NaN and Inf are the same fault."""
    return float(_is_none(first) != _is_none(again))


def _loss(reports: list[Any]) -> Tensor:
    """This rank's own sum of losses; 0 where it has none."""
    return torch.stack([report["loss_and_targets"][:, 0].sum() for report in reports]).sum() if reports else torch.zeros(())


# --- on which rank it began ------------------------------------------------------------------------------------------------


def _suspects(trainer: "Trainer", reports: list[Any]) -> list[Suspect]:
    """The ranks with the surest sign; the backward pass runs from the last stage to the first, so of those whose gradient it
    is the ones on the last stage that has any."""
    mine = _sign(trainer, reports)
    ranks = trainer.ranks
    device = f"{ranks.device.type}:{ranks.device.index}" if ranks.device.index is not None else f"process {os.getpid()}"
    stage = parallel_state.get_pipeline_model_parallel_rank()
    told: list[Suspect | None] = [None] * ranks.world_size
    torch.distributed.all_gather_object(told, Suspect(ranks.rank, host_name(), device, mine, stage) if mine else None)
    signs = [suspect for suspect in told if suspect]
    surest = [[suspect for suspect in signs if suspect.where == place] for place in PLACES]
    found = next((suspects for suspects in surest if suspects), [])
    last = max((suspect.pipeline_stage for suspect in found), default=0)
    return [suspect for suspect in found if suspect.pipeline_stage == last]


def _sign(trainer: "Trainer", reports: list[Any]) -> Where | None:
    """What is no number on this rank.

    The reduction leaves in a rank's gradient buffers its share of the sum and, in the other ranks' shares, what it computed
    alone: a sign there is its own. Where buffers are reduced whole, they say nothing of a single rank.
    """
    if not torch.isfinite(_loss(reports)):
        return "loss"
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    sharded = all(chunk.ddp_config.use_distributed_optimizer for chunk in trainer.chunks)
    found: set[Where] = set()
    for bucket in _buckets(trainer.chunks):
        for number, share in enumerate(bucket.grad_data.chunk(group.size()) if sharded else [bucket.grad_data]):
            if not torch.isfinite(share).all():
                alone = group.size() == 1 or (sharded and number != group.rank())
                found.add("gradient before it was reduced" if alone else "gradient")
    return min(found, key=PLACES.index, default=None)


def _buckets(chunks: list[DistributedDataParallel]) -> Iterator[Any]:
    for chunk in chunks:
        for group in (*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups):
            yield from group.buckets
