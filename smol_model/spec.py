"""ModelConfig -> TransformerConfig, layer ModuleSpec, GPTModel: the one file that knows Megatron-Core's specs.

Two backends build the same network with the same checkpoint:

    torch   Megatron-Core's own parallel linear layers, PackedAttention and RMSNorm; runs on CPUs and GPUs
    te      Transformer Engine's kernels: norm fused into the linear that follows it, flash attention; GPUs

Their parameters have different names in memory (the te backend keeps a norm's weight inside the linear) and the same
sharded keys on disk, so weights and fully reshardable optimizer state of either load into the other. Not so the
dp_reshardable form: it holds flat buffers in the order of the parameters in memory, and that order differs.
"""

import functools
import importlib
import logging
from typing import Any, Literal

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor

from smol_config import ConfigError
from smol_model.attention import PackedAttention
from smol_model.config import ModelConfig

logger = logging.getLogger(__name__)

Backend = Literal["torch", "te"]
Precision = Literal["bf16", "fp32"]

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""Dtype of the parameters and of the pipeline's messages, by precision."""


def resolve_backend(name: Literal["auto", "torch", "te"]) -> Backend:
    """The backend that a setting means here: auto is te where Transformer Engine imports and a GPU is there."""
    if name == "auto":
        return "te" if torch.cuda.is_available() and importable("transformer_engine.pytorch") else "torch"
    if name == "te" and not importable("transformer_engine.pytorch"):
        raise ConfigError(
            "train.backend is te, but transformer_engine does not import here; install requirements-gpu.txt or use torch"
        )
    return name


@functools.cache
def importable(module: str) -> bool:
    """Whether a module imports; a broken installation counts as absent and its message is logged."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a mismatched CUDA library raises OSError or RuntimeError, not ImportError
        logger.info("%s does not import: %s", module, error)
        return False
    return True


def transformer_config(
    model: ModelConfig, backend: Backend, precision: Precision = "fp32", deterministic: bool = False, **options: Any
) -> TransformerConfig:
    """Megatron-Core's configuration of `model`; `options` are further fields of it, such as the parallel sizes.

    `deterministic` leaves out what does not give the same bits each time.
    """
    without_rope = set(model.layers_without_rope)
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.query_groups,
        kv_channels=model.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        qk_layernorm=model.qk_norm,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=model.qkv_bias,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        # A list, since Megatron-Core refuses an interval that does not divide the layers; 1 = no rotary embedding.
        no_rope_freq=[int(layer in without_rope) for layer in range(model.num_layers)] if without_rope else None,
        init_method_std=model.init_std,
        bf16=precision == "bf16",
        params_dtype=DTYPES[precision],
        pipeline_dtype=DTYPES[precision],
        calculate_per_token_loss=True,
        deterministic_mode=deterministic,
        **_kernel_options(backend, deterministic),
        **options,
    )


def _kernel_options(backend: Backend, deterministic: bool = False) -> dict[str, Any]:
    """Fused kernels. All default to off in Megatron-Core's configuration, so the te backend names each."""
    if backend == "torch":
        return {"gradient_accumulation_fusion": False}
    return {
        "apply_rope_fusion": True,
        "bias_activation_fusion": True,  # SwiGLU
        "bias_dropout_fusion": True,
        "cross_entropy_loss_fusion": not deterministic,  # Megatron-LM asks for it
        "cross_entropy_fusion_impl": "te",
        "gradient_accumulation_fusion": has_gradient_accumulation_fusion(),
    }


@functools.cache
def has_gradient_accumulation_fusion() -> bool:
    """Whether apex's kernel, which adds weight gradients to the fp32 buffer inside the GEMM, is installed; says so once."""
    found = importable("fused_weight_gradient_mlp_cuda")
    logger.info(
        "gradient accumulation fusion is %s",
        "on" if found else "off: apex's fused_weight_gradient_mlp_cuda does not import (docs/install.md)",
    )
    return found


class RMSNorm(torch.nn.Module):
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019), for the torch backend.

    Megatron-Core's own wrapper refuses sequence parallelism; this one marks its weight, so that its gradient is summed
    over the tensor-parallel ranks, each of which sees a part of the sequence.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.shape, self.epsilon = (hidden_size,), eps
        device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, self.shape, self.weight, self.epsilon)


def layer_spec(model: ModelConfig, backend: Backend) -> ModuleSpec:
    """Specification of one transformer layer."""
    if backend == "te":
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=model.qk_norm)
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=model.qk_norm)
    # The key map of this spec writes its norms under the te backend's keys: one checkpoint for both.
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    attention = layer.self_attention.submodules
    attention.core_attention = PackedAttention
    if model.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return spec


def block_spec(model: ModelConfig, config: TransformerConfig, backend: Backend, vp_stage: int | None = None) -> Any:
    """Specification of this pipeline stage's layers and of the final norm."""
    layer = layer_spec(model, backend)
    if backend == "te":
        return layer  # Megatron-Core completes it with TENorm
    count = get_num_layers_to_build(config, vp_stage, parallel_state.get_pipeline_model_parallel_rank())
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)


class SmolGPT(GPTModel):
    """Megatron-Core's GPTModel with z-loss and with checkpoints that do not depend on the backend."""

    z_loss: float = 0.0

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Loss of every target, [b, s] float32, from labels [b, s] and logits [s, b, vocabulary / TP].

        While training, z_loss * log(Z)^2 is added, Z the sum of exponentiated logits (PaLM, section 5).
        """
        if not (self.z_loss and self.training):
            return super().compute_language_model_loss(labels, logits)
        log_z = _log_partition(logits.float())  # first: the cross entropies work in place on `logits`
        return super().compute_language_model_loss(labels, logits) + self.z_loss * log_z.square().transpose(0, 1)

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As GPTModel's, without `_extra_state`: Transformer Engine's record of FP8 scales, empty in bf16 and fp32."""
        state = super().sharded_state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if not name.endswith("_extra_state")}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's, but `_extra_state` may be missing."""
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [name for name in result.missing_keys if not name.endswith("_extra_state")]
        if strict and (missing or result.unexpected_keys):
            raise RuntimeError(f"weights do not fit the model: missing {missing}, unexpected {result.unexpected_keys}")
        return result


def _log_partition(logits: Tensor) -> Tensor:
    """log(sum(exp(logits))) over a vocabulary split across the tensor-parallel ranks, [..., vocabulary / TP] -> [...].

    Keeps nothing of `logits` for the backward pass, so that they may be overwritten afterwards.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    highest = logits.detach().amax(dim=-1)
    torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX, group=group)
    local = (logits - highest.unsqueeze(-1)).exp().sum(dim=-1)
    return tensor_parallel.reduce_from_tensor_model_parallel_region(local).log() + highest


def _set_yarn(model: ModelConfig, config: TransformerConfig, factor: float, sequence_length: int, backend: Backend) -> None:
    """Megatron-Core reads these attributes, which its configuration does not declare; the values are the paper's."""
    if backend == "te":
        raise ConfigError(f"yarn_factor={factor} on the te backend computes something else; use the torch backend")
    if model.llama3_rope_factor:
        raise ConfigError(
            f"yarn_factor={factor} with model.llama3_rope_factor={model.llama3_rope_factor}: the rotary embedding is stretched "
            "in one way only; leave yarn_factor at 1"
        )
    values = {
        "rotary_scaling_factor": factor,
        "original_max_position_embeddings": sequence_length,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": None,  # both None: the attention factor is 0.1 ln(factor) + 1
        "mscale_all_dim": None,
        "correction_range_round_to_int": True,
    }
    for name, value in values.items():
        setattr(config, f"yarn_{name}", value)


def build_model(
    model: ModelConfig,
    config: TransformerConfig,
    backend: Backend,
    sequence_length: int,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    gather_logits: bool = False,
    yarn_factor: float = 1.0,
) -> SmolGPT:
    """The network, or this pipeline stage's part of it, on the current device.

    forward(input_ids [1, t], position_ids [1, t], None, labels=[1, t], packed_seq_params=...) gives the loss of every
    target, [1, t]; without labels the logits [1, t, vocabulary / TP], or the whole vocabulary with `gather_logits`.

    `yarn_factor` above 1 stretches the rotary embedding to that many times `sequence_length` (YaRN, Peng et al. 2023), for
    looking at an export: raises ConfigError for the te backend, whose fused kernel leaves YaRN's attention factor
    out, and for models with a llama3_rope_factor.
    """
    if yarn_factor > 1:
        _set_yarn(model, config, yarn_factor, sequence_length, backend)
    gpt = SmolGPT(
        config,
        block_spec(model, config, backend, vp_stage),
        vocab_size=model.vocab_size,
        max_sequence_length=sequence_length,
        pre_process=pre_process,
        post_process=post_process,
        parallel_output=not gather_logits,
        share_embeddings_and_output_weights=model.tie_embeddings,
        position_embedding_type="yarn" if yarn_factor > 1 else "rope",
        rotary_base=model.rope_theta,
        rope_scaling=model.llama3_rope_factor is not None,  # its other three numbers are fixed there at Llama 3.1's
        rope_scaling_factor=model.llama3_rope_factor or 1.0,
        vp_stage=vp_stage,
    )
    gpt.z_loss = model.z_loss
    return gpt
