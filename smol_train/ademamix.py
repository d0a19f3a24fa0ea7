"""AdEMAMix: AdamW with a second, slow average of the gradients. Built by smol_train/optim.py.

Pagliardini, Ablin, Grangier 2024, "The AdEMAMix Optimizer: Better, Faster, Older" (arXiv 2409.03137), Algorithm 1:

    m1 <- beta1 m1 + (1 - beta1) g              m2 <- beta3(t) m2 + (1 - beta3(t)) g        v <- beta2 v + (1 - beta2) g^2
    w  <- w - lr (( m1 / (1 - beta1^t) + alpha(t) m2 ) / ( sqrt(v / (1 - beta2^t)) + eps ) + weight_decay w)

with t counted from 1 and both schedules rising from nothing (alpha) and from beta1 (beta3), so that early steps are AdamW's.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch

from smol_train.adamw import AdamW
from smol_train.sections.optim import AdEMAMixConfig


class AdEMAMix(AdamW):
    """State per parameter, each of its shape: `exp_avg` (m1), `exp_avg_slow` (m2), `exp_avg_sq` (v); a step count per group."""

    def __init__(self, params: Iterable[Any], settings: AdEMAMixConfig, train_steps: int, **defaults: Any) -> None:
        """`train_steps` is the length of warm-ups that the settings leave open; `defaults` are AdamW's."""
        super().__init__(params, **defaults)
        self.settings, self.train_steps = settings, train_steps

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_slow", "exp_avg_sq"

    def _step_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        (beta1, beta2), step = group["betas"], group["step"]
        beta3, alpha = self.slow_average(beta1, step)
        for p in parameters:
            state = self.state[p]
            state["exp_avg"].lerp_(p.grad, 1 - beta1)
            state["exp_avg_slow"].lerp_(p.grad, 1 - beta3)
            state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            root = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
            mixed = (state["exp_avg"] / (1 - beta1**step)).add_(state["exp_avg_slow"], alpha=alpha)
            p.mul_(1 - group["lr"] * group["weight_decay"]).addcdiv_(mixed, root, value=-group["lr"])

    def slow_average(self, beta1: float, step: int) -> tuple[float, float]:
        """(beta3, alpha) at a step, which counts from 1: section 3 of the paper. beta3's half-life grows linearly."""
        settings = self.settings
        reached = _share(step, settings.alpha_warmup_steps, self.train_steps)
        alpha = settings.alpha * reached
        reached = _share(step, settings.beta3_warmup_steps, self.train_steps)
        if reached == 1 or beta1 == 0:
            return settings.beta3, alpha
        start, end = math.log(beta1), math.log(settings.beta3)
        return min(math.exp(start * end / ((1 - reached) * end + reached * start)), settings.beta3), alpha


def _share(step: int, warmup_steps: int | None, train_steps: int) -> float:
    """How much of a warm-up is done, 0 to 1."""
    length = train_steps if warmup_steps is None else warmup_steps
    return min(step / length, 1.0) if length else 1.0
