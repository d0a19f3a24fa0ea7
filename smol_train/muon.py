"""Muon: momentum made orthogonal, for the matrices of the layers; AdamW for the rest. Built by smol_train/optim.py.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon), with the
learning-rate rule and the weight decay of Liu et al. 2025, "Muon is Scalable for LLM Training" (arXiv 2502.16982), section 2.2:

    m <- momentum m + (1 - momentum) g          u = (1 - momentum) g + momentum m (Nesterov), or m
    w <- w - lr (update_rms sqrt(max(rows, columns)) orthogonal(u) + weight_decay w)

An orthogonal [rows, columns] matrix has a root mean square of 1 / sqrt(max(rows, columns)); the factor brings it to update_rms,
and 0.2 is about what AdamW's updates have: AdamW's learning rate and weight decay can be kept.

A matrix is what the model's formulas call one: Megatron-Core's fused weights are taken apart into query, key and value (all
heads together) and into gate and up. Newton-Schulz needs it whole, so its parts are gathered over the tensor-parallel ranks,
each of which then computes the same result and keeps its part. Nothing is shared out over the data-parallel ranks.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from smol_train.adamw import AdamW
from smol_train.sections.optim import MuonConfig

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of the quintic iteration (Jordan et al. 2024): singular values end near 1 (0.7 to 1.2), small ones rise fastest."""


@dataclass(frozen=True)
class Layout:
    """How a parameter on this rank is made of matrices."""

    rows: tuple[int, ...]
    """Rows of each matrix in one block, on this rank; blocks follow each other. Query, key and value come one block for each
    query group, gate and up in one block."""
    split_dim: int | None = None
    """Dimension that the ranks of `group` share; None: each has all."""
    group: torch.distributed.ProcessGroup | None = None

    def take_apart(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """[rows, columns] -> one [rows of it, columns] for each matrix."""
        columns = parameter.shape[1]
        blocks = parameter.reshape(-1, sum(self.rows), columns)
        return [piece.reshape(-1, columns) for piece in blocks.split(self.rows, dim=1)]

    def put_together(self, matrices: list[torch.Tensor]) -> torch.Tensor:
        """The inverse of `take_apart`."""
        columns = matrices[0].shape[1]
        blocks = [matrix.reshape(-1, rows, columns) for matrix, rows in zip(matrices, self.rows, strict=True)]
        return torch.cat(blocks, dim=1).reshape(-1, columns)

    def whole(self, part: torch.Tensor) -> torch.Tensor:
        """A matrix from the parts of all tensor-parallel ranks."""
        if self.split_dim is None:
            return part
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size(self.group))]
        torch.distributed.all_gather(parts, part.contiguous(), group=self.group)
        return torch.cat(parts, dim=self.split_dim)

    def mine(self, matrix: torch.Tensor) -> torch.Tensor:
        """This rank's part of a whole matrix."""
        if self.split_dim is None:
            return matrix
        size = torch.distributed.get_world_size(self.group)
        return matrix.chunk(size, dim=self.split_dim)[torch.distributed.get_rank(self.group)]


class Muon(AdamW):
    """State per parameter: `momentum` in groups that are marked `is_decoupled_lr`, AdamW's in the others.

    The mark is one of four fields by which Megatron-Core tells the groups of a checkpoint apart; it means what it says: these
    groups' learning rate follows another rule. `layouts` holds the layout of each parameter of marked groups.
    """

    def __init__(self, params: Iterable[Any], settings: MuonConfig, precision: torch.dtype, **defaults: Any) -> None:
        """`precision` is that of Newton-Schulz's products; `defaults` are AdamW's."""
        super().__init__(params, **defaults)
        self.settings, self.precision = settings, precision
        self.layouts: dict[torch.Tensor, Layout] = {}

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum",) if group["is_decoupled_lr"] else super().state_names(group)

    def _step_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        if not group["is_decoupled_lr"]:
            super()._step_group(group, parameters)
            return
        for p in parameters:
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(self._update(p, self.layouts[p]), alpha=group["lr"])

    def _update(self, parameter: torch.Tensor, layout: Layout) -> torch.Tensor:
        settings, momentum, gradient = self.settings, self.state[parameter]["momentum"], parameter.grad
        assert gradient is not None
        momentum.lerp_(gradient, 1 - settings.momentum)
        direction = gradient.lerp(momentum, settings.momentum) if settings.nesterov else momentum
        updates = []
        for part in layout.take_apart(direction):
            matrix = orthogonalized(layout.whole(part), settings.ns_steps, self.precision)
            updates.append(layout.mine(matrix) * (settings.update_rms * math.sqrt(max(matrix.shape))))
        return layout.put_together(updates)


def orthogonalized(matrix: torch.Tensor, steps: int, precision: torch.dtype) -> torch.Tensor:
    """U V^T of the singular value decomposition U S V^T, approximately: quintic Newton-Schulz iteration on [rows, columns].

    Computed in `precision`; the result has the matrix's dtype.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(precision)
    x = x / x.norm().clamp(min=1e-7)  # the spectral norm is at most the Frobenius norm
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
