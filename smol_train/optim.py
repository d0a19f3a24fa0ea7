"""Parameter groups and optimizer: Megatron-Core's distributed optimizer around fused Adam."""

import fnmatch
from collections.abc import Iterable
from typing import Any

import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core import utils
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    ParamKey,
    clip_grads,
    distrib_optimizer,
    get_megatron_optimizer,
)
from megatron.core.optimizer import optimizer as optimizer_module
from megatron.core.optimizer.optimizer_config import ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import ParamGroupOverride
from torch.optim.adamw import adamw

from smol_config import ConfigError, nearest
from smol_model.spec import DTYPES
from smol_train.config import OptimConfig, RunConfig
from smol_train.model import unwrap

METADATA = {"non_homogeneous_layers": True}
"""Asks Megatron-Core for one sharded key per layer, instead of all layers stacked into one tensor."""


def build_optimizer(config: RunConfig, model: DistributedDataParallel) -> MegatronOptimizer:
    """AdamW with fp32 master weights and moments, sharded over the data-parallel ranks."""
    optim = config.optim
    if megatron_optimizer.USING_PYTORCH_OPTIMIZER or not torch.cuda.is_available():
        _use_own_adamw()
    if not torch.cuda.is_available():
        _use_torch_for_norms()
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=optim.learning_rate,
            min_lr=optim.schedule.min_learning_rate,
            adam_beta1=optim.betas[0],
            adam_beta2=optim.betas[1],
            adam_eps=optim.eps,
            weight_decay=optim.weight_decay,
            clip_grad=optim.clip_grad_norm,
            bf16=config.train.precision == "bf16",
            params_dtype=DTYPES[config.train.precision],
            use_distributed_optimizer=True,
            overlap_param_gather=config.parallel.overlap,
        ),
        [model],
        config_overrides=_weight_decay_overrides(model, optim.no_weight_decay),
    )
    model.config.grad_scale_func = optimizer.scale_loss
    return optimizer


def set_hyperparameters(optimizer: MegatronOptimizer, optim: OptimConfig, learning_rate: float) -> None:
    """Set what every parameter group goes by in the coming step.

    Weight decay is set here because Megatron-Core only marks exempt groups (`wd_mult`) and leaves the product to its own
    scheduler, which is not used; the rest, so that the configuration and not a loaded checkpoint decides.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["weight_decay"] = optim.weight_decay * group["wd_mult"]
        group["betas"], group["eps"] = optim.betas, optim.eps


def parameter_names(model: DistributedDataParallel) -> dict[str, torch.nn.Parameter]:
    """Parameters of this rank by the name under which a checkpoint stores them.

    These names depend neither on the backend nor on the layout: layers carry their number in the whole model, and the
    copy of a tied embedding that the last pipeline stage keeps as its head is an embedding too.
    """
    network = unwrap(model)
    sharded = network.sharded_state_dict(metadata=METADATA)
    return {sharded[name].key: parameter for name, parameter in network.named_parameters()}


def _weight_decay_overrides(model: DistributedDataParallel, patterns: list[str]) -> dict[ParamKey, ParamGroupOverride]:
    """Weight decay 0 for parameters that match; raises ConfigError for a pattern that matches none on any rank."""
    names = parameter_names(model)
    every: list[list[str]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, list(names))
    known = {name for rank in every for name in rank}
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise ConfigError(f"optim.no_weight_decay: {pattern!r} matches no parameter; {nearest(pattern, known)}")
    exempt = {id(names[name]) for pattern in patterns for name in fnmatch.filter(names, pattern)}
    key = ParamKey(
        with_name_predicate=ParamWithNamePredicate(name="no_weight_decay", fn=lambda parameter, _: id(parameter) in exempt)
    )
    return {key: ParamGroupOverride(wd_mult=0.0)}


def _use_own_adamw() -> None:
    """Name AdamW below as Megatron-Core's Adam, where neither Transformer Engine's nor apex's can serve.

    Its fallback, torch.optim.AdamW, keeps a step count per parameter, with which a distributed optimizer's checkpoint
    cannot be loaded (KeyError: 'step').
    """
    megatron_optimizer.Adam, megatron_optimizer.USING_PYTORCH_OPTIMIZER = AdamW, False
    distrib_optimizer.Adam, distrib_optimizer.HAVE_APEX_OR_TE, distrib_optimizer.USING_TE_OPTIMIZER = AdamW, True, True


def _use_torch_for_norms() -> None:
    """Gradient norms and clipping by torch, on a host without CUDA where Transformer Engine's kernels import all the same."""
    for module in (clip_grads, optimizer_module):
        module.multi_tensor_applier = utils.local_multi_tensor_applier
        module.multi_tensor_scale_impl = utils.local_multi_tensor_scale
    clip_grads.l2_norm_impl = utils.local_multi_tensor_l2_norm


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
            done = int(group.get("step", 0))
            group["step"] = done + 1
            parameters = [p for p in group["params"] if p.grad is not None and p.numel()]
            if not parameters:
                continue
            for p in parameters:
                if not self.state[p]:
                    self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            adamw(
                parameters,
                [p.grad for p in parameters],
                [self.state[p]["exp_avg"] for p in parameters],
                [self.state[p]["exp_avg_sq"] for p in parameters],
                max_exp_avg_sqs=[],
                state_steps=[torch.tensor(float(done), device=p.device) for p in parameters],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
