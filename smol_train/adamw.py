"""AdamW where neither Transformer Engine's nor apex's serves, and for what Muon leaves to it. Built by smol_train/optim.py."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw


class AdamW(torch.optim.Optimizer):
    """torch's fused AdamW with the state layout of Transformer Engine's FusedAdam: one step count per parameter group,
    `exp_avg` and `exp_avg_sq` per parameter. A checkpoint written with either loads with the other."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
    ) -> None:
        if not adam_w_mode:
            raise ValueError("adam_w_mode=False (weight decay inside the gradient) is not offered; use decoupled weight decay")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bias_correction": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = int(group.get("step", 0)) + 1
            parameters = [p for p in group["params"] if p.grad is not None and p.numel()]
            if parameters:
                for p in parameters:
                    self.initialize_state(group, p)
                self._step_group(group, parameters)

    def initialize_state(self, group: dict[str, Any], parameter: torch.Tensor) -> None:
        """State of a parameter that has none yet: zeros of its shape."""
        if not self.state[parameter]:
            for name in self.state_names(group):
                self.state[parameter][name] = torch.zeros_like(parameter)

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """What is kept for each parameter of a group."""
        return "exp_avg", "exp_avg_sq"

    def _step_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        """Update parameters that all have a gradient and a state; `group["step"]` counts this step already."""
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [self.state[p]["exp_avg"] for p in parameters],
            [self.state[p]["exp_avg_sq"] for p in parameters],
            max_exp_avg_sqs=[],
            state_steps=[torch.tensor(float(group["step"] - 1), device=p.device) for p in parameters],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
