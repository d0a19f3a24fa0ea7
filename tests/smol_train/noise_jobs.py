"""What ranks do in the tests of the gradient-noise scale."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jobs
import torch
from tiny_runs import QUICKSTART

from smol_config import load
from smol_train.callbacks.base import Callback, Metrics
from smol_train.config import RunConfig


def measure(overrides: Sequence[str]) -> dict[str, Any]:
    """Train as pretrain_smol.py does; returns each step's measurement and metric, losses and weights."""
    from smol_train.callbacks.noise_scale import GradientNoiseScale
    from smol_train.parallel import process_groups
    from smol_train.trainer import Trainer

    config = load(RunConfig, QUICKSTART, overrides)
    noise_scale, steps = GradientNoiseScale(), []

    class Keep(Callback):
        def on_step_end(self, trainer: Any, metrics: Metrics) -> None:
            measured = noise_scale.small and (noise_scale.small, noise_scale.large)
            steps.append((metrics["train/loss"], measured, metrics.get("train/gradient_noise_scale")))

    with process_groups(config.parallel, config.train.seed) as ranks:
        trainer = Trainer(config, ranks, [noise_scale, Keep()])
        trainer.fit()
        return {"steps": steps, "weights": jobs.weight_digests(trainer)}


def brute_force(overrides: Sequence[str], weights: Path) -> list[tuple[float, float]]:
    """(targets, squared norm) of the mean gradient of step 0's first micro-batch and of its whole batch, by autograd on the
    bare network: no DistributedDataParallel, no optimizer, no schedule."""
    from smol_data.loader import TrainLoader
    from smol_model.spec import build_model, transformer_config
    from smol_train import checkpoint
    from smol_train.parallel import process_groups
    from smol_train.step import forward_step

    config = load(RunConfig, QUICKSTART, overrides)
    with process_groups(config.parallel, config.train.seed) as ranks:
        network = build_model(config.model, transformer_config(config.model, "torch"), "torch", config.data.sequence_length)
        checkpoint.load_weights(weights, network)
        loader = TrainLoader(config.data, config.segments, config.train.micro_batch_size, 0, 1, ranks.device)
        parameters, sums, targets, found = list(network.parameters()), None, 0.0, []
        for _ in range(loader.micro_batches(0)):
            losses, masked = forward_step(loader, network)
            total, count, _ = masked(losses)
            gradients = [gradient.double() for gradient in torch.autograd.grad(total, parameters)]
            sums = gradients if sums is None else [a + b for a, b in zip(sums, gradients, strict=True)]
            targets += float(count)
            found.append((targets, sum(float((one / targets).square().sum()) for one in sums)))
        loader.close()
        return [found[0], found[-1]]
