"""What ranks of the test pool do: small pieces of real training. Each function runs on every rank of its world."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from conftest import REPOSITORY
from smol_config import load
from smol_train.callbacks.base import Callback, Metrics
from smol_train.config import RunConfig

QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"


class Recorder(Callback):
    """Keeps every step's loss and gradient norm."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
        self.steps.append({name: metrics[name] for name in metrics if name.startswith(("train/", "eval/"))})


def train(overrides: Sequence[str], save: bool = False, evaluate: bool = False) -> dict[str, Any]:
    """Run the real trainer to its end; returns its losses, gradient norms and the digests of its weights."""
    from smol_train.callbacks.checkpointing import Checkpointing
    from smol_train.callbacks.evaluation import HeldOutEvaluation
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed) as ranks:
        recorder = Recorder()
        callbacks = [*([HeldOutEvaluation()] if evaluate else []), recorder, *([Checkpointing()] if save else [])]
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


def weight_digests(trainer: Any) -> dict[str, str]:
    """SHA-256 of each parameter of this rank, by its name in a checkpoint."""
    from smol_train.model import gathered_parameters
    from smol_train.optim import parameter_names

    with gathered_parameters(trainer.model):
        return {name: digest(parameter) for name, parameter in parameter_names(trainer.model).items()}


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().float().contiguous().numpy().tobytes()).hexdigest()


def save_initial_weights(overrides: Sequence[str], folder: Path) -> None:
    """A weights-only checkpoint of the configuration's initial weights, for runs in other layouts to start from."""
    from smol_train import checkpoint
    from smol_train.model import build_training_model, unwrap
    from smol_train.parallel import process_groups

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed):
        network = unwrap(build_training_model(config))
        weights = network.sharded_state_dict(metadata=checkpoint._metadata(None))
        checkpoint.write_weights_only(folder, weights, config.model_dump(mode="json", exclude_none=True))


def train_with_in_memory_names(overrides: Sequence[str]) -> dict[str, Any]:
    """As `train`, with the weight decay patterns matched against the modules' own names: a fault put in on purpose."""
    from smol_train import optim
    from smol_train.model import unwrap

    names = optim.parameter_names
    try:
        optim.parameter_names = lambda model: dict(unwrap(model).named_parameters())
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
        return {"weights": {name: digest(parameter) for name, parameter in names(trainer.model).items()}}
