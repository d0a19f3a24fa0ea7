"""What ranks of the test pool do: small pieces of real training. Each function runs on every rank of its world."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_runs import QUICKSTART

from smol_config import load
from smol_train.callbacks.base import Callback, Metrics
from smol_train.config import RunConfig


class Recorder(Callback):
    """Keeps every step's loss and gradient norm."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
        self.steps.append({name: metrics[name] for name in metrics if name.startswith(("train/", "eval/"))})


def train(
    overrides: Sequence[str], save: bool = False, evaluate: bool = False, config_file: Path = QUICKSTART
) -> dict[str, Any]:
    """Run the real trainer to its end; returns its losses, gradient norms and the digests of its weights."""
    from smol_train.callbacks.checkpointing import Checkpointing
    from smol_train.callbacks.evaluation import HeldOutEvaluation
    from smol_train.callbacks.parameter_norms import ParameterNorms
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    config = load(RunConfig, config_file, overrides)
    with process_groups(config.parallel, config.train.seed) as ranks:
        recorder = Recorder()
        callbacks = [
            *([HeldOutEvaluation()] if evaluate else []),
            ParameterNorms(),
            recorder,
            *([Checkpointing()] if save else []),
        ]
        trainer = Trainer(config, ranks, callbacks)
        start = trainer.state.step
        code = trainer.fit()
        return {
            "code": code,
            "start": start,
            "loss": [step["train/loss"] for step in recorder.steps],
            "grad_norm": [step["train/grad_norm"] for step in recorder.steps],
            "steps": recorder.steps,
            "weights": weight_digests(trainer),
        }


def forward_counts(overrides: Sequence[str]) -> dict[str, int]:
    """How often a run's training steps passed forward through the attentions and MLPs of this rank's layers."""
    from smol_train.model import unwrap
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    config, counts = load(RunConfig, QUICKSTART, overrides), {"self_attention": 0, "mlp": 0}

    def count(name: str) -> None:
        counts[name] += 1

    with process_groups(config.parallel, config.train.seed) as ranks:
        trainer = Trainer(config, ranks)
        for layer in (layer for chunk in trainer.chunks for layer in unwrap(chunk).decoder.layers):
            for name in counts:
                getattr(layer, name).register_forward_hook(lambda *_, name=name: count(name))
        trainer.fit()
    return counts


def bytes_for_backward(overrides: Sequence[str]) -> int:
    """Bytes that the forward pass of one micro-batch keeps for its backward pass, beside the weights."""
    from smol_train.parallel import process_groups
    from smol_train.step import forward_step
    from smol_train.trainer import Trainer

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed) as ranks:
        trainer = Trainer(config, ranks)
        trainer.clear_gradients()
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            forward_step(trainer.batches, trainer.chunks[0])
        weights = {parameter.untyped_storage().data_ptr() for parameter in trainer.chunks[0].parameters()}
        trainer.loader.close()
        return sum(storage.nbytes() for place, storage in kept.items() if place not in weights)


def weight_digests(trainer: Any) -> dict[str, str]:
    """SHA-256 of each parameter of this rank, by its name in a checkpoint."""
    from smol_train.model import gathered_parameters
    from smol_train.optim import parameter_names

    with gathered_parameters(trainer.chunks):
        return {name: digest(parameter) for name, parameter in parameter_names(trainer.chunks).items()}


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().float().contiguous().numpy().tobytes()).hexdigest()


def save_initial_weights(overrides: Sequence[str], folder: Path) -> None:
    """A weights-only checkpoint of the configuration's initial weights, for runs in other layouts to start from."""
    from smol_train import checkpoint
    from smol_train.model import build_chunks, unwrap
    from smol_train.parallel import process_groups

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed):
        [network] = map(unwrap, build_chunks(config))
        weights = network.sharded_state_dict(metadata=checkpoint._metadata(None))
        checkpoint.write_weights_only(folder, weights, config.model_dump(mode="json", exclude_none=True))


def train_with_in_memory_names(overrides: Sequence[str]) -> dict[str, Any]:
    """As `train`, with the weight decay patterns matched against the modules' own names: a fault put in on purpose."""
    from smol_train import optim
    from smol_train.model import unwrap

    names = optim.parameter_names
    try:
        optim.parameter_names = lambda chunks: dict(unwrap(*chunks).named_parameters())
        config = load(RunConfig, QUICKSTART, overrides)
        return _train_and_digest(config, names)
    finally:
        optim.parameter_names = names


def _train_and_digest(config: RunConfig, names: Any) -> dict[str, Any]:
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    with process_groups(config.parallel, config.train.seed) as ranks:
        trainer = Trainer(config, ranks)
        trainer.fit()
        return {"weights": {name: digest(parameter) for name, parameter in names(trainer.chunks).items()}}


def stored_weight_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor that a checkpoint's model holds, read without the trainer."""
    from smol_model.spec import build_model, transformer_config
    from smol_train import checkpoint
    from smol_train.checkpoint_folder import read_model_config
    from smol_train.parallel import process_groups
    from smol_train.sections.layout import ParallelConfig

    with process_groups(ParallelConfig(), seed=0):
        model = read_model_config(folder)
        network = build_model(model, transformer_config(model, "torch"), "torch", sequence_length=64)
        checkpoint.load_weights(folder, network)
        return {name: digest(parameter) for name, parameter in network.named_parameters()}


def initial_weights(overrides: Sequence[str], one_seed: bool = False) -> dict[str, torch.Tensor]:
    """This rank's initial weights by checkpoint name. `one_seed` gives every tensor-parallel rank the same stream: the
    fault that cost SmolLM3 a restart."""
    from megatron.core import tensor_parallel

    from smol_train import parallel
    from smol_train.model import build_chunks
    from smol_train.optim import parameter_names

    config = load(RunConfig, QUICKSTART, overrides)
    seed_everything = parallel.seed_everything
    if one_seed:
        parallel.seed_everything = lambda seed: tensor_parallel.model_parallel_cuda_manual_seed(seed, tp_rank=0)
    try:
        with parallel.process_groups(config.parallel, config.train.seed):
            chunks = build_chunks(config)
            return {name: parameter.detach().clone() for name, parameter in parameter_names(chunks).items()}
    finally:
        parallel.seed_everything = seed_everything


def decay_by_name(overrides: Sequence[str]) -> dict[str, float]:
    """Weight decay that a step applies to this rank's parameters, by checkpoint name."""
    from smol_train.model import build_chunks
    from smol_train.optim import build_optimizer, parameter_names, set_hyperparameters
    from smol_train.parallel import process_groups

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed):
        chunks = build_chunks(config)
        optimizer = build_optimizer(config, chunks)
        set_hyperparameters(optimizer, config.optim, learning_rate=1e-3)
        names = parameter_names(chunks)
        [inner] = optimizer.chained_optimizers
        # At a data-parallel size of 1 a rank's shard is all of its parameters, in the groups' order.
        groups = {
            parameter: group["weight_decay"]
            for group_range, group in zip(inner.opt_group_ranges, inner.param_groups, strict=True)
            for parameter in group_range["params"]
        }
        return {name: groups[parameter] for name, parameter in names.items()}


def train_with_metrics(overrides: Sequence[str]) -> None:
    """A run with the metrics writer and evaluation, as pretrain_smol.py has them."""
    from smol_train.callbacks.evaluation import HeldOutEvaluation
    from smol_train.callbacks.metrics import MetricsWriter
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed) as ranks:
        Trainer(config, ranks, [HeldOutEvaluation(), MetricsWriter()]).fit()


def train_until_signal(overrides: Sequence[str], number: int, at_step: int) -> dict[str, int]:
    """The last rank sends itself a signal after `at_step` steps."""
    from smol_train.callbacks.checkpointing import Checkpointing
    from smol_train.callbacks.signals import StopOnSignal
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    class Signal(Callback):
        def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
            if trainer.state.step == at_step and trainer.ranks.rank == trainer.ranks.world_size - 1:
                os.kill(os.getpid(), number)

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed) as ranks:
        trainer = Trainer(config, ranks, [StopOnSignal(), Signal(), Checkpointing()])
        return {"code": trainer.fit(), "step": trainer.state.step}
