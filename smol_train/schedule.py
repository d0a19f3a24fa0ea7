"""Learning rate by step, as a pure function of the `optim:` section. Used by the optimizer (optim.py) and the plan (plan.py).

Steps count from 1: step s <= warmup_steps runs at learning_rate * s / warmup_steps, and a decay of D steps after step S
reaches its minimum at step S + D, the end of the run. nanotron, which trained SmolLM3, logs the same rates in the warm-up and
in the two long-context runs. In SmolLM3's linear decay it logs at step s what this file gives at s - 1, because its
configuration names the first step of the decay (4,198,001) where the formula subtracts the last one of the peak; so it ended at
1/522,000 of the peak instead of 0. What nanotron applies at a step is the rate that it logged a step before (its scheduler
moves on after the update), so that its very first update had a rate of 0. Tests hold both differences; neither is imitated.

Imports no torch, so that a dry run starts at once.
"""

import math

from smol_train.sections.optim import OptimConfig, ScheduleConfig


def decay_start(schedule: ScheduleConfig, train_steps: int) -> int | None:
    """The last step at the peak, after which wsd and cosine fall; None where nothing falls continuously."""
    if schedule.kind == "wsd" and schedule.decay_steps:
        return train_steps - schedule.decay_steps
    return schedule.warmup_steps if schedule.kind == "cosine" else None


def learning_rate(config: OptimConfig, train_steps: int, step: int, batch_share: float = 1.0) -> float:
    """Learning rate of optimizer step `step` (the first is 1) in a run of `train_steps`; past the end it stays at the end's.

    `batch_share` is the step's batch over the full one, below 1 in a batch-size ramp: schedule.batch_rule scales the rate by
    its square root (Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms") or by itself
    (Goyal et al. 2017, "Accurate, Large Minibatch SGD").
    """
    factor = {"none": 1.0, "sqrt": math.sqrt(batch_share), "linear": batch_share}[config.schedule.batch_rule]
    return factor * _scheduled(config, train_steps, step)


def _scheduled(config: OptimConfig, train_steps: int, step: int) -> float:
    """The rate for the full batch."""
    schedule, peak = config.schedule, config.learning_rate
    if step < schedule.warmup_steps:
        return peak * max(step, 0) / schedule.warmup_steps
    if schedule.kind == "multi_step":
        passed = sum(step > milestone for milestone in schedule.milestones)
        return float(peak * schedule.factor**passed)
    start = decay_start(schedule, train_steps)
    if start is None or step <= start:
        return peak
    progress = min((step - start) / (train_steps - start), 1.0) if train_steps > start else 1.0
    shape = "cosine" if schedule.kind == "cosine" else schedule.decay_shape
    return _decayed(shape, peak, schedule.min_learning_rate, progress)


def _decayed(shape: str, peak: float, minimum: float, progress: float) -> float:
    """The rate after `progress`, 0 to 1, of a fall from `peak` to `minimum`."""
    if shape == "exponential":
        return float(peak * (minimum / peak) ** progress)
    # 1-sqrt is Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations".
    remaining = {
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "1-sqrt": 1 - math.sqrt(progress),
    }[shape]
    return minimum + (peak - minimum) * remaining
