"""What a process of the test pool does with the te backend where Transformer Engine imports and there is no GPU: build the
network and look at it. Nothing of it is ever run forward.

Megatron-Core is imported first, on a host without CUDA, so that host_device.py gives it the CPU as its device. Transformer
Engine's constructors then ask torch.cuda whether a device is there and what it can do; they are answered, and only they.
"""

import contextlib
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from model_jobs import build, fill, tiny, world

from smol_model.config import ModelConfig

MODELS = {
    "SmolLM3's architecture": tiny(),
    "untied embeddings": tiny(tie_embeddings=False),
    "query and key norms": tiny(qk_norm=True),
    "biases on queries, keys and values": tiny(qkv_bias=True),
}


@contextlib.contextmanager
def as_if_on_a_gpu() -> Iterator[None]:
    import smol_model.spec  # noqa: F401  (imports megatron.core before torch.cuda tells anything else)

    with mock.patch.multiple(torch.cuda, is_available=lambda: True, get_device_capability=lambda *_: (9, 0)):
        yield


def build_te(model: ModelConfig, options: Mapping[str, Any]) -> Any:
    with as_if_on_a_gpu():
        return build(model, options, "te")


def build_both(model: ModelConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"torch": build(model, options), "te": build_te(model, options)}


def sharded(network: Any) -> dict[str, tuple]:
    """By the key in a checkpoint: (global shape, dtype, offsets of this rank's parts)."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import apply_factories

    from smol_train.optim import METADATA

    state = network.sharded_state_dict(metadata=METADATA)
    apply_factories(state)
    found: dict[str, tuple] = {}
    for part in nested_values(state):
        offsets = [*found[part.key][2], part.global_offset] if part.key in found else [part.global_offset]
        found[part.key] = (part.global_shape, str(part.dtype), sorted(offsets))
    return found


def structure(tensor: int = 1, sequence: bool = False) -> dict[str, dict[str, Any]]:
    """By model: the te backend's parameters with their shapes and modules, and both backends' sharded keys."""
    found = {}
    with world(tensor, sequence) as options:
        for name, model in MODELS.items():
            networks = build_both(model, options)
            te = networks["te"]
            found[name] = {
                "shapes": {key: tuple(parameter.shape) for key, parameter in te.named_parameters()},
                "sequence parallel": {key for key, p in te.named_parameters() if getattr(p, "sequence_parallel", False)},
                "parameters": sum(parameter.numel() for parameter in te.parameters()),
                "final norm": f"{type(te.decoder.final_layernorm).__module__}.{type(te.decoder.final_layernorm).__name__}",
                "epsilons": {te.decoder.final_layernorm.eps, te.decoder.layers[0].mlp.linear_fc1.eps},
                "sharded": {backend: sharded(network) for backend, network in networks.items()},
            }
    return found


def kernel_options(apex: bool) -> dict[str, Any]:
    """What the te backend's TransformerConfig holds of the options that choose kernels."""
    from smol_model import spec

    caches = (spec.importable, spec.has_gradient_accumulation_fusion)
    name = "fused_weight_gradient_mlp_cuda"
    with mock.patch.dict(sys.modules, {name: types.ModuleType(name) if apex else None}):
        [cached.cache_clear() for cached in caches]
        config = spec.transformer_config(tiny(), "te", "bf16")
        chosen = {name: getattr(config, name) for name in spec._kernel_options("te")}
        [cached.cache_clear() for cached in caches]
    return chosen


def exchange(folder: Path, name: str, saved_by: str, tensor: int = 1) -> list[str]:
    """Save one backend's weights, load them into the other; the checkpoint's keys whose values then differ."""
    from smol_train import checkpoint
    from smol_train.optim import METADATA

    model = MODELS[name]
    with world(tensor) as options:
        networks = build_both(model, options)
        source = networks.pop(saved_by)
        [target] = networks.values()
        fill(source)
        metadata = checkpoint._metadata(None)
        checkpoint.write_weights_only(folder, source.sharded_state_dict(metadata=metadata), {"model": model.model_dump()})
        checkpoint.load_weights(folder, target)

        def weights(network: Any) -> dict[str, torch.Tensor]:
            state = network.sharded_state_dict(metadata=METADATA)
            return {state[key].key: parameter for key, parameter in network.named_parameters()}

        one, other = weights(source), weights(target)
        assert one.keys() == other.keys()
        return [key for key in one if not torch.equal(one[key], other[key])]


def run_config(backend: Any, precision: Any) -> Any:
    from smol_data.config import DataConfig, StageConfig
    from smol_train.config import RunConfig
    from smol_train.sections.layout import ParallelConfig
    from smol_train.sections.optim import OptimConfig
    from smol_train.sections.run import TrainConfig

    stage = StageConfig(name="s", steps=1, weights={"a": 1})
    sizes = {"global_batch_size": 2, "micro_batch_size": 1}
    return RunConfig(
        model=tiny(),
        parallel=ParallelConfig(overlap=False),
        data=DataConfig(tokenizer="none", sequence_length=32, datasets={"a": "none"}, stages=[stage]),
        optim=OptimConfig(learning_rate=1e-3),
        train=TrainConfig(output_dir="none", precision=precision, backend=backend, **sizes),
    )


def train_objects(config: Any, fused_adam: bool) -> tuple[Any, Any]:
    """The model's one chunk in its wrappers, in a list, and its optimizer; with `fused_adam` Transformer Engine's, its one
    buffer that is put on "cuda" kept on the CPU, else smol_train's own AdamW."""
    from transformer_engine.pytorch.optimizers import FusedAdam

    from smol_train import optim
    from smol_train.model import build_chunks

    on_te = config.train.backend == "te"
    with as_if_on_a_gpu() if on_te else contextlib.nullcontext():
        chunks = build_chunks(config)
    with transformer_engine_adam() if fused_adam else contextlib.nullcontext():
        optimizer = optim.build_optimizer(config, chunks)
    assert isinstance(inner(optimizer).optimizer, FusedAdam if fused_adam else optim.AdamW)
    return chunks, optimizer


def inner(optimizer: Any) -> Any:
    """Megatron-Core's distributed optimizer, out of the chain of one."""
    [distributed] = optimizer.chained_optimizers
    return distributed


def exchange_optimizer(folder: Path, saved_by: str, precision: Any) -> dict[str, Any]:
    """Save weights and optimizer state of one backend, load them into the other, where the te backend has FusedAdam.

    Gives the keys of the optimizer's tensors, those whose values differ afterwards, and the step counts that arrived."""
    from smol_train import checkpoint
    from smol_train.checkpoint_folder import TrainState
    from smol_train.model import unwrap
    from smol_train.parallel import process_groups

    loaded_by = {"torch": "te", "te": "torch"}[saved_by]
    configs = {backend: run_config(backend, precision) for backend in (saved_by, loaded_by)}
    with process_groups(configs[saved_by].parallel, 1):
        objects = {backend: train_objects(config, backend == "te") for backend, config in configs.items()}

        def state(backend: str) -> Any:
            [model], optimizer = objects[backend]
            metadata = checkpoint._metadata("fully_reshardable")
            return optimizer.sharded_state_dict(unwrap(model).sharded_state_dict(metadata=metadata), metadata=metadata)

        chunks, optimizer = objects[saved_by]
        fill(unwrap(*chunks))
        optimizer.reload_model_params()
        inner(optimizer).init_state_fn(inner(optimizer).optimizer, inner(optimizer).config)
        for moments in inner(optimizer).optimizer.state.values():
            [moment.normal_() for moment in moments.values()]
        for group in optimizer.param_groups:
            group["step"] = 3
        save = checkpoint.save(folder, configs[saved_by], chunks, optimizer, TrainState(step=3), "fully_reshardable")
        checkpoint.load(save.finish().folder, configs[loaded_by], *objects[loaded_by], with_optimizer=True)
        one, other = tensors(state(saved_by)), tensors(state(loaded_by))
        return {
            "keys": sorted(one),
            "differing": sorted(key for key in one.keys() | other.keys() if not torch.equal(one[key], other[key])),
            "steps": [group["step"] for group in objects[loaded_by][1].param_groups],
        }


def tensors(state: Any) -> dict[str, torch.Tensor]:
    """Values by key of a sharded state in a world of one, where every part is whole; a SwiGLU's two parts in one tensor."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    apply_factories(state)
    parts: dict[str, list[torch.Tensor]] = {}
    for part in nested_values(state):
        if isinstance(part, ShardedTensor):
            parts.setdefault(part.key, []).append(part.data)
    return {key: torch.cat(values) for key, values in parts.items()}


def flat_orders() -> dict[str, list[str]]:
    """By backend: the checkpoint's names of the parameters in the order in which the flat gradient buffer holds them."""
    from smol_train.optim import parameter_names
    from smol_train.parallel import process_groups

    found = {}
    with process_groups(run_config("torch", "fp32").parallel, 1):
        for backend in ("torch", "te"):
            chunks, _ = train_objects(run_config(backend, "fp32"), False)
            names = {id(parameter): name for name, parameter in parameter_names(chunks).items()}
            [buffer] = chunks[0].buffers
            places = sorted(buffer.param_index_map.items(), key=lambda item: item[1][0])
            found[backend] = [names[id(parameter)] for parameter, _ in places]
    return found


@contextlib.contextmanager
def transformer_engine_adam() -> Iterator[None]:
    """As on a GPU, where smol_train.optim leaves Megatron-Core's choice of FusedAdam alone."""
    from megatron.core import optimizer as megatron_optimizer
    from megatron.core.optimizer import distrib_optimizer
    from transformer_engine.pytorch.optimizers import FusedAdam

    tensor = torch.tensor

    def on_cpu(*arguments: Any, **options: Any) -> torch.Tensor:
        return tensor(*arguments, **{**options, "device": "cpu"})

    with (
        mock.patch.object(torch, "tensor", on_cpu),
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(megatron_optimizer, "Adam", FusedAdam),
        mock.patch.object(megatron_optimizer, "USING_PYTORCH_OPTIMIZER", False),
        mock.patch.object(distrib_optimizer, "Adam", FusedAdam),
    ):
        yield
