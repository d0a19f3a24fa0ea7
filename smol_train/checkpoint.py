"""Save, load, reshard: what a checkpoint holds.

    *.distcp, .metadata, metadata.json, common.pt    Megatron-Core torch_dist: every tensor under its global name
    run.yaml                                         the resolved configuration
    state.json                                       step, samples, tokens, data fingerprint, layout, versions
    COMPLETE                                         the marker, written last; a folder without it does not exist

Every rank writes its share (fully parallel strategies). The optimizer's state is stored in one of two forms:

    dp_reshardable       cheap: no communication; loads on any data-parallel size, the same TP, PP, chunks and backend
    fully_reshardable    gathered over the data-parallel ranks first; loads on any layout

Periodic saves of bf16 runs take the first, saves at a stage's end, on a signal, on request and at the end the second.
fp32 runs always take the second: Megatron-Core 0.16.1 cannot load the first into fp32 parameters. Optimizers that are not
distributed have the second alone, and it costs them no gathering: their states are stored like the weights.
"""

import importlib.metadata
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy, get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.state_dict_saver import save_state_dict_async_plan
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.metadata import Metadata

from smol_model.config import ModelConfig
from smol_model.spec import SmolGPT, resolve_backend
from smol_train.checkpoint_folder import (
    RUN_YAML,
    STATE,
    CheckpointError,
    OptimizerForm,
    TrainState,
    check_whole,
    folder_name,
    read_model_config,
    read_run_mapping,
    read_state,
    state_text,
)
from smol_train.checkpoint_writer import Read, Save, SharePlan, make_partial
from smol_train.config import RunConfig
from smol_train.data_places import for_all_nodes
from smol_train.model import gathered_parameters, unwrap
from smol_train.optim import METADATA

FILES_PER_RANK = 2
"""Written at the same time."""

# --- saving ----------------------------------------------------------------------------------------------------------------


def save(
    run: Path,
    config: RunConfig,
    chunks: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    state: TrainState,
    form: OptimizerForm,
) -> Save:
    """Begin to save `run/iter_N`; called on all ranks. Training may go on at once; the checkpoint is whole after the
    returned save's `finish()`. Both raise SaveError, on all ranks, when it cannot be written."""
    state = _stamped(state, form, config)
    metadata = _metadata(form)
    with gathered_parameters(chunks):
        weights = _sharded_weights(chunks, metadata)
        tensors = {"model": weights, "optimizer": optimizer.sharded_state_dict(weights, metadata=metadata)}
        return _begin(run / folder_name(state.step), tensors, state, for_all_nodes(config), form)


def write_weights_only(folder: Path, weights: ShardedStateDict, run_mapping: dict[str, Any], read: Read | None = None) -> Path:
    """Save weights that no trainer made (from-hf), at `folder`; called in a started process group.

    `read`, where it is given, gives each tensor when it is written; those of `weights` are on the meta device then.
    """
    state = TrainState(reason="converted weights", versions=_versions())
    return _begin(folder, {"model": weights}, state, yaml.safe_dump(run_mapping, sort_keys=False), None, read).finish().folder


def _begin(
    folder: Path,
    tensors: dict[str, Any],
    state: TrainState,
    run_yaml: str,
    form: OptimizerForm | None,
    read: Read | None = None,
) -> Save:
    tensors["content_metadata"] = {"distrib_optim_sharding_type": form, **METADATA}
    partial = make_partial(folder)
    sharded, common = save_preprocess(tensors)
    FullyParallelSaveStrategyWrapper(get_default_save_sharded_strategy(), _replicas()).apply_saving_parallelization(sharded)
    plan, metadata = _plan(sharded, partial, read)
    small_files = {RUN_YAML: run_yaml.encode(), STATE: state_text(state).encode(), "common.pt": _serialised(common)}
    return Save(folder, plan, metadata, small_files, state.step)


def _plan(sharded: ShardedStateDict, folder: Path, read: Read | None) -> tuple[SharePlan, Metadata | None]:
    """This rank's files, and on the main rank the whole plan: TorchDistSaveShardedStrategy.async_save up to its writer."""
    flat, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, True)
    share = SharePlan(folder, FILES_PER_RANK, read)
    planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
    (_, metadata, _), *_ = save_state_dict_async_plan(mcore_to_pyt_state_dict(flat, False), share, planner=planner)
    return share, metadata


def _serialised(common: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(common, buffer)
    return buffer.getvalue()


def _stamped(state: TrainState, form: OptimizerForm, config: RunConfig) -> TrainState:
    parallel = config.parallel
    layout = {name: getattr(parallel, name) for name in ("tensor", "pipeline", "virtual_pipeline", "context")}
    layout["data"] = parallel_state.get_data_parallel_world_size()
    backend = resolve_backend(config.train.backend)
    return replace(state, optimizer=form, layout=layout, backend=backend, versions=_versions())


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "megatron-core")}


def _metadata(form: OptimizerForm | None) -> dict[str, Any]:
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return {**METADATA, "dp_cp_group": group, "distrib_optim_sharding_type": form, "chained_optim_avoid_prefix": True}


def _replicas() -> torch.distributed.ProcessGroup:
    """The ranks that hold the same weights and share the work of writing and reading them."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


# --- loading ---------------------------------------------------------------------------------------------------------------


def load(
    folder: Path, config: RunConfig, chunks: list[DistributedDataParallel], optimizer: MegatronOptimizer, with_optimizer: bool
) -> TrainState:
    """Load a checkpoint into a built model and optimizer, on all ranks; raises CheckpointError when it does not fit.

    Into a new model with model.qk_norm, a checkpoint without it loads too: the norms stay as they were built, all ones.
    """
    check_whole(folder)
    state = read_state(folder)
    adds_norms = _check_architecture(folder, config.model, with_optimizer)
    _check_length(folder, config)
    if with_optimizer:
        _check_optimizer(folder, state, config)
    metadata = _metadata(state.optimizer if with_optimizer else None)
    weights = _sharded_weights(chunks, metadata)
    wanted: dict[str, Any] = {"model": _without_qk_norms(weights) if adds_norms else weights}
    if with_optimizer:
        wanted["optimizer"] = optimizer.sharded_state_dict(weights, is_loading=True, metadata=metadata)
    loaded = _read(folder, wanted)
    for name, chunk in _named(chunks).items():
        unwrap(chunk).load_state_dict(loaded["model"][name], strict=not adds_norms)
    # What was asked for decides, not what came: without tensors asked for, the optimizer's entry holds only its settings.
    if with_optimizer:
        optimizer.load_state_dict(loaded["optimizer"])
    else:
        optimizer.reload_model_params()
    return replace(state, monitor={}) if adds_norms else state  # what was a usual loss is none any more


def _sharded_weights(chunks: list[DistributedDataParallel], metadata: dict[str, Any]) -> dict[str, ShardedStateDict]:
    """What the chunks hold, under each tensor's name in the whole model; how it falls into chunks is not stored."""
    return {name: unwrap(chunk).sharded_state_dict(metadata=metadata) for name, chunk in _named(chunks).items()}


def _without_qk_norms(weights: dict[str, ShardedStateDict]) -> dict[str, ShardedStateDict]:
    norms = ("q_layernorm.", "k_layernorm.")
    return {
        chunk: {name: tensor for name, tensor in tensors.items() if not any(norm in name for norm in norms)}
        for chunk, tensors in weights.items()
    }


def _named(chunks: list[DistributedDataParallel]) -> dict[str, DistributedDataParallel]:
    return {f"chunk_{number}": chunk for number, chunk in enumerate(chunks)}


def load_weights(folder: Path, network: SmolGPT) -> None:
    """Load a checkpoint's weights into a network without wrappers, as conversion and verification do."""
    check_whole(folder)
    loaded = _read(folder, {"model": network.sharded_state_dict(metadata=_metadata(None))})
    network.load_state_dict(loaded["model"])


def _read(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    strategy = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(str(folder)), _replicas())
    try:
        return dist_checkpointing.load(wanted, str(folder), strategy)
    except dist_checkpointing.core.CheckpointingException as error:
        raise CheckpointError(f"checkpoint {folder} does not hold what this run needs: {error}") from error


_MAY_CHANGE = {"rope_theta", "z_loss", "init_std", "max_sequence_length"}
"""Settings of the architecture that a later run may change: they decide no tensor."""


def _check_architecture(folder: Path, model: ModelConfig, with_optimizer: bool) -> bool:
    """Whether the run adds norms on queries and keys to the checkpoint's model; any other difference raises CheckpointError."""
    stored, now = read_model_config(folder).model_dump(), model.model_dump()
    adds_norms = bool(now["qk_norm"] and not stored["qk_norm"])
    allowed = _MAY_CHANGE | ({"qk_norm"} if adds_norms else set())
    differing = [name for name in now if stored[name] != now[name] and name not in allowed]
    if differing:
        listed = "; ".join(f"model.{name}: checkpoint {stored[name]}, config {now[name]}" for name in differing)
        raise CheckpointError(
            f"checkpoint {folder} holds another architecture ({listed}); correct the config or start a new run"
        )
    if adds_norms and with_optimizer:
        raise CheckpointError(
            f"checkpoint {folder} has model.qk_norm=false, and its optimizer holds nothing for the norms that qk_norm=true "
            f"adds; start a new run with start_from: {{checkpoint: {folder}, optimizer: false}}"
        )
    return adds_norms


def _check_length(folder: Path, config: RunConfig) -> None:
    """What a checkpoint allows holds until the configuration says otherwise."""
    allowed, length = read_model_config(folder).max_sequence_length, config.data.sequence_length
    if allowed and config.model.max_sequence_length is None and length > allowed:
        raise CheckpointError(
            f"checkpoint {folder} is a model for up to {allowed} tokens, but data.sequence_length={length}; shorten it, or set "
            f"model.max_sequence_length={length} (and raise model.rope_theta) to train a longer context"
        )


def _check_optimizer(folder: Path, state: TrainState, config: RunConfig) -> None:
    if state.optimizer is None:
        raise CheckpointError(f"checkpoint {folder} holds weights only; set start_from.optimizer=false")
    _check_same_optimizer(folder, config)
    if state.optimizer == "fully_reshardable":
        return
    parallel = config.parallel
    chunks = state.layout.get("virtual_pipeline", 1)
    saved = (state.layout["tensor"], state.layout["pipeline"], chunks, state.backend)
    now = (parallel.tensor, parallel.pipeline, parallel.virtual_pipeline, resolve_backend(config.train.backend))
    if saved != now:
        raise CheckpointError(
            f"checkpoint {folder} is a periodic save of parallel.tensor={saved[0]}, parallel.pipeline={saved[1]}, "
            f"parallel.virtual_pipeline={saved[2]} on the {saved[3]} backend, which does not load on tensor={now[0]}, "
            f"pipeline={now[1]}, virtual_pipeline={now[2]} on {now[3]}; resume as it was and stop it with a signal, which "
            f"saves for any layout, or set start_from.optimizer=false"
        )


def _check_same_optimizer(folder: Path, config: RunConfig) -> None:
    """Raises CheckpointError unless the states are those of the run's optimizer, stored as it stores them."""
    stored = read_run_mapping(folder)
    name, precision = stored["optim"].get("optimizer", "adamw"), stored["train"].get("precision", "bf16")
    if name != config.optim.optimizer:
        raise CheckpointError(
            f"checkpoint {folder} holds the state of optim.optimizer={name}, config {config.optim.optimizer}; go on with that "
            f"one or set start_from.optimizer=false"
        )
    if precision != config.train.precision and not config.optim.distributed:
        raise CheckpointError(
            f"checkpoint {folder} holds the state of {name} in train.precision={precision}, config {config.train.precision}; "
            f"go on in that precision or set start_from.optimizer=false"
        )
