"""L2 norms of the weights by group, every so many steps, as `train/parameter_norm/GROUP`."""

import re
from typing import TYPE_CHECKING

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared

from smol_train.callbacks.base import Callback, Metrics
from smol_train.model import gathered_parameters
from smol_train.optim import parameter_names

if TYPE_CHECKING:
    from smol_train.trainer import Trainer

GROUPS = {
    "norm": "norm",
    "embedding": r"^embedding\.",
    "head": r"^output_layer\.",
    "attention": r"\.self_attention\.",
    "mlp": r"\.mlp\.",
}
"""Group -> pattern of the names under which checkpoints store its weights; the first that is found in a name holds. A tied head
is the embedding."""


class ParameterNorms(Callback):
    """Before the metrics are written. Of the weights as the forward pass sees them, in bf16 where the model is."""

    def on_step_end(self, trainer: "Trainer", metrics: Metrics) -> None:
        every = trainer.config.logging.parameter_norms_every_steps
        if every and trainer.state.step % every == 0:
            with gathered_parameters(trainer.chunks):
                norms = group_norms(trainer.chunks)
            metrics.update({f"train/parameter_norm/{group}": norm for group, norm in norms.items()})


def group_of(name: str) -> str:
    """The group of a weight by its name in a checkpoint; `other` where no pattern is found."""
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, name)), "other")


@torch.no_grad()
def group_norms(chunks: list[DistributedDataParallel]) -> dict[str, float]:
    """Norm of each group over the whole model, known to all ranks after one collective; groups without weights are left out."""
    names = [*GROUPS, "other"]
    weights: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for name, parameter in parameter_names(chunks).items():
        if _counts(parameter):
            weights[group_of(name)].append(parameter)
    device = next(chunks[0].parameters()).device
    squares = torch.zeros(len(names), dtype=torch.float64, device=device)
    for number, name in enumerate(names):
        for weight in weights[name]:
            squares[number] += torch.linalg.vector_norm(weight, dtype=torch.float32).double() ** 2
    torch.distributed.all_reduce(squares)
    return {name: value**0.5 for name, value in zip(names, squares.tolist(), strict=True) if value}


def _counts(parameter: torch.Tensor) -> bool:
    """Whether this rank is the one that adds a weight: data-parallel ranks have the same, tensor-parallel ranks repeat what is
    not split, and the last stage repeats a tied embedding."""
    first = parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
    return first and param_is_not_shared(parameter) and param_is_not_tensor_parallel_duplicate(parameter)
