"""Parameter groups and optimizer: RunConfig + model -> AdamW, AdEMAMix or Muon behind Megatron-Core's interface.

AdamW runs inside Megatron-Core's distributed optimizer, which shares its states out over the data-parallel ranks but keeps
two of them per parameter, elementwise. AdEMAMix has three and Muon needs whole matrices, so both run in Megatron-Core's plain
optimizers: every data-parallel rank holds the states of its weights, and checkpoints store them like the weights.
"""

import fnmatch
from typing import Any

import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core import parallel_state, utils
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    ChainedOptimizer,
    Float16OptimizerWithFloat16Params,
    FP32Optimizer,
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

from smol_config import ConfigError, nearest
from smol_model.config import ModelConfig
from smol_model.spec import DTYPES
from smol_train.adamw import AdamW
from smol_train.ademamix import AdEMAMix
from smol_train.config import RunConfig
from smol_train.model import unwrap
from smol_train.muon import Layout, Muon
from smol_train.sections.optim import OptimConfig

METADATA = {"non_homogeneous_layers": True}
"""Asks Megatron-Core for one sharded key per layer, instead of all layers stacked into one tensor."""


def build_optimizer(config: RunConfig, chunks: list[DistributedDataParallel]) -> ChainedOptimizer:
    """The configured optimizer with fp32 master weights; raises ConfigError for patterns that match no parameter."""
    optim = config.optim
    if megatron_optimizer.USING_PYTORCH_OPTIMIZER or not torch.cuda.is_available():
        _use_own_adamw()
    if not torch.cuda.is_available():
        _use_torch_for_norms()
    megatron = OptimizerConfig(
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
        use_distributed_optimizer=optim.distributed,
        overlap_param_gather=optim.distributed and config.parallel.overlap,
    )
    exempt = _matching(chunks, "optim.no_weight_decay", optim.no_weight_decay)
    overrides = _override("no_weight_decay", exempt, wd_mult=0.0)
    if optim.distributed:
        optimizer = get_megatron_optimizer(megatron, chunks, config_overrides=overrides)
    else:
        optimizer = _replicated_optimizer(config, megatron, chunks, overrides)
    chunks[0].config.grad_scale_func = optimizer.scale_loss  # one configuration for all chunks
    return optimizer


def _replicated_optimizer(
    config: RunConfig,
    megatron: OptimizerConfig,
    chunks: list[DistributedDataParallel],
    overrides: dict[ParamKey, ParamGroupOverride],
) -> ChainedOptimizer:
    """Muon or AdEMAMix in Megatron-Core's optimizer for bf16 or fp32 parameters, states whole on every data-parallel rank."""
    optim, layouts = config.optim, {}
    if optim.optimizer == "muon":
        layouts = _matrix_layouts(config, chunks)
        overrides = overrides | _override("muon", layouts, is_decoupled_lr=True)
    groups = megatron_optimizer._get_param_groups(chunks, megatron, overrides)
    defaults: dict[str, Any] = {
        "lr": optim.learning_rate,
        "betas": optim.betas,
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
    }
    inner: AdamW
    if optim.optimizer == "muon":
        inner = Muon(groups, optim.muon, DTYPES[config.train.precision], **defaults)
    else:
        inner = AdEMAMix(groups, optim.ademamix, config.train_steps, **defaults)
    optimizer: MegatronOptimizer
    if megatron.bf16:
        optimizer = Float16OptimizerWithFloat16Params(inner, megatron, None, _initialize_states)
    else:
        optimizer = FP32Optimizer(inner, megatron, _initialize_states)
    if isinstance(inner, Muon):  # which by now updates the fp32 copies of bf16 parameters
        inner.layouts = {getattr(parameter, "main_param", parameter): layout for parameter, layout in layouts.items()}
    optimizer.grad_stats_parallel_group = parallel_state.get_model_parallel_group()
    optimizer.tp_group = parallel_state.get_tensor_model_parallel_group()
    return ChainedOptimizer([optimizer])


def _initialize_states(optimizer: AdamW, config: OptimizerConfig | None = None) -> None:
    """States for a checkpoint to be loaded into."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.initialize_state(group, parameter)


def set_hyperparameters(optimizer: MegatronOptimizer, optim: OptimConfig, learning_rate: float) -> None:
    """Set what every parameter group goes by in the coming step.

    Weight decay is set here because Megatron-Core only marks exempt groups (`wd_mult`) and leaves the product to its own
    scheduler, which is not used; the rest, so that the configuration and not a loaded checkpoint decides.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["weight_decay"] = optim.weight_decay * group["wd_mult"]
        group["betas"], group["eps"] = optim.betas, optim.eps


def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """Ready the gradients of a finished backward pass for `update`; returns their global L2 norm before clipping."""
    optimizer.prepare_grads()  # says whether a loss scale overflowed; bf16 and fp32 have none
    return float(optimizer.get_grad_norm())


def update(optimizer: ChainedOptimizer, norm: float, clip: float) -> None:
    """Clip the ready gradients, whose global norm is `norm`, to `clip` (0: not at all) and step.

    What MegatronOptimizer.step does in one go, cut in two so that someone can look at the norm and not step.
    """
    for inner in optimizer.chained_optimizers:
        parameters = inner.get_parameters()
        if clip and parameters:
            clip_grads.clip_grad_by_total_norm_fp32(parameters, clip, norm)
    optimizer.step_with_ready_grads()


def parameter_names(chunks: list[DistributedDataParallel]) -> dict[str, torch.nn.Parameter]:
    """Parameters of this rank by the name under which a checkpoint stores them.

    These names depend neither on the backend nor on the layout: layers carry their number in the whole model, and the
    copy of a tied embedding that the last pipeline stage keeps as its head is an embedding too.
    """
    names = {}
    for network in map(unwrap, chunks):
        sharded = network.sharded_state_dict(metadata=METADATA)
        names.update({sharded[name].key: parameter for name, parameter in network.named_parameters()})
    return names


def _matching(chunks: list[DistributedDataParallel], setting: str, patterns: list[str]) -> dict[torch.nn.Parameter, str]:
    """This rank's parameters that match, with their names; raises ConfigError for a pattern that matches none on any rank."""
    names = parameter_names(chunks)
    every: list[list[str]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, list(names))
    known = {name for rank in every for name in rank}
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise ConfigError(f"{setting}: {pattern!r} matches no parameter; {nearest(pattern, known)}")
    return {names[name]: name for pattern in patterns for name in fnmatch.filter(names, pattern)}


def _override(name: str, parameters: dict[torch.nn.Parameter, Any], **fields: Any) -> dict[ParamKey, ParamGroupOverride]:
    """Groups of their own for some parameters, with these fields."""
    chosen = {id(parameter) for parameter in parameters}
    key = ParamKey(with_name_predicate=ParamWithNamePredicate(name=name, fn=lambda parameter, _: id(parameter) in chosen))
    return {key: ParamGroupOverride(**fields)}


def _matrix_layouts(config: RunConfig, chunks: list[DistributedDataParallel]) -> dict[torch.nn.Parameter, Layout]:
    """What each parameter that Muon updates is made of; raises ConfigError for one that is no matrix, on all ranks alike."""
    layouts, wrong = {}, []
    for parameter, name in _matching(chunks, "optim.muon.parameters", config.optim.muon.parameters).items():
        if parameter.dim() != 2:
            wrong.append(f"{name} of shape {list(parameter.shape)}")
            continue
        shared = config.parallel.tensor > 1 and getattr(parameter, "tensor_model_parallel", False)
        layouts[parameter] = Layout(
            rows=_matrix_rows(config.model, name, parameter.shape[0]),
            split_dim=getattr(parameter, "partition_dim", None) if shared else None,
            group=parallel_state.get_tensor_model_parallel_group() if shared else None,
        )
    every: list[list[str]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, wrong)
    if found := sorted({name for rank in every for name in rank}):
        raise ConfigError(
            f"optim.muon.parameters={config.optim.muon.parameters} match {found[0]}, which is no matrix and cannot be made "
            f"orthogonal; narrow the patterns to matrices"
        )
    return layouts


def _matrix_rows(model: ModelConfig, name: str, rows: int) -> tuple[int, ...]:
    """Rows of each matrix in a block of a weight: [query heads, key, value] per query group, [gate, up], or all."""
    if name.endswith("linear_qkv.weight"):
        return model.num_attention_heads // model.query_groups * model.kv_channels, model.kv_channels, model.kv_channels
    if name.endswith("linear_fc1.weight"):
        return rows // 2, rows // 2
    return (rows,)


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
