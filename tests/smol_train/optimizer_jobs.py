"""What ranks do in the tests of Muon and AdEMAMix: updates from given gradients, states kept and states loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_runs import QUICKSTART

from smol_config import load
from smol_train.config import RunConfig


def part_of(name: str, whole: torch.Tensor, dim: int | None, rank: int, size: int) -> torch.Tensor:
    """A tensor-parallel rank's part of a whole parameter: Megatron-Core splits gate and up each for itself."""
    if dim is None:
        return whole
    if name.endswith("linear_fc1.weight"):
        return torch.cat([half.chunk(size, dim)[rank] for half in whole.chunk(2, dim)], dim)
    return whole.chunk(size, dim)[rank]


def split_dims(names: dict[str, Any], size: int) -> dict[str, int | None]:
    """The dimension by which tensor-parallel ranks share each parameter; None: each has all of it."""
    return {
        name: parameter.partition_dim if size > 1 and getattr(parameter, "tensor_model_parallel", False) else None
        for name, parameter in names.items()
    }


def steps_on_given_gradients(overrides: Sequence[str], folder: Path, gather: bool = True) -> dict[str, Any]:
    """Three optimizer steps from weights and gradients that do not depend on the layout.

    The whole weights come from the run without tensor parallelism, which leaves them in `folder`. Norms' gradients are zero:
    the global norm, by which gradients are clipped, is switched off.
    """
    from smol_train.model import build_chunks
    from smol_train.optim import build_optimizer, parameter_names
    from smol_train.parallel import process_groups

    config = load(RunConfig, QUICKSTART, [*overrides, "optim.clip_grad_norm=0"])
    size = config.parallel.tensor
    with process_groups(config.parallel, config.train.seed):
        rank = torch.distributed.get_rank()
        chunks = build_chunks(config)
        optimizer = build_optimizer(config, chunks)
        names = parameter_names(chunks)
        if size == 1:
            torch.save({name: parameter.detach().clone() for name, parameter in names.items()}, folder / "weights.pt")
        weights = torch.load(folder / "weights.pt")
        dims = split_dims(names, size)
        for name, parameter in names.items():
            parameter.data.copy_(part_of(name, weights[name], dims[name], rank, size))
        optimizer.reload_model_params()
        if not gather:
            _forget_the_split(optimizer)
        before = {name: parameter.detach().clone() for name, parameter in names.items()}
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for name in sorted(names):
                whole = torch.randn(weights[name].shape, generator=generator)
                names[name].main_grad.copy_(part_of(name, whole, dims[name], rank, size))
            optimizer.step()
        after = {name: parameter.detach().clone() for name, parameter in names.items()}
        return {"before": before, "after": after, "split_dims": dims}


def _forget_the_split(optimizer: Any) -> None:
    from dataclasses import replace

    inner = optimizer.optimizer
    inner.layouts = {parameter: replace(layout, split_dim=None) for parameter, layout in inner.layouts.items()}


def states_by_name(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Names of the states that this rank keeps, by the parameter's name in a checkpoint."""
    from smol_train.model import build_chunks
    from smol_train.optim import _initialize_states, build_optimizer, parameter_names
    from smol_train.parallel import process_groups

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed):
        chunks = build_chunks(config)
        inner = build_optimizer(config, chunks).optimizer
        _initialize_states(inner)
        names = parameter_names(chunks)
        return {name: sorted(inner.state[getattr(p, "main_param", p)]) for name, p in names.items()}


def matrix_rows_by_name(overrides: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Rows of the matrices that each of Muon's parameters on this rank is made of, by its name in a checkpoint."""
    from smol_train.model import build_chunks
    from smol_train.optim import build_optimizer, parameter_names
    from smol_train.parallel import process_groups

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed):
        chunks = build_chunks(config)
        layouts = build_optimizer(config, chunks).optimizer.layouts
        return {name: layouts[p].rows for name, p in parameter_names(chunks).items() if p in layouts}


def loaded_states(overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """What a checkpoint gives this rank: each parameter's states and its fp32 master, by its name in a checkpoint."""
    from megatron.core import parallel_state

    from smol_train import checkpoint
    from smol_train.model import build_chunks
    from smol_train.optim import build_optimizer, parameter_names
    from smol_train.parallel import process_groups

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed):
        chunks = build_chunks(config)
        optimizer = build_optimizer(config, chunks)
        checkpoint.load(folder, config, chunks, optimizer, with_optimizer=True)
        names, inner = parameter_names(chunks), optimizer.optimizer
        return {
            "rank": parallel_state.get_tensor_model_parallel_rank(),
            "split_dims": split_dims(names, config.parallel.tensor),
            "states": {name: {**inner.state[p.main_param], "master": p.main_param.detach()} for name, p in names.items()},
        }
