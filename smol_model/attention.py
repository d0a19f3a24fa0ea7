"""Core attention over packed documents for the torch backend; Transformer Engine brings its own for the te backend.

Megatron-Core's local attention refuses packed sequences, so the torch backend's layer spec names this class instead.
Documents never see each other: on the CPU each document is one causal scaled-dot-product attention of its own, in fp32, on
CUDA one variable-length flash attention covers the row. Either way the cost is the sum of the squared lengths.

The flash kernel takes 16-bit numbers and heads of at most 256 channels, a multiple of 8. What it does not take (fp32 runs,
above all) goes document by document on CUDA too: exact and slower, since the host has to know the lengths in every layer.
"""

import inspect
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from smol_config import ConfigError


class PackedAttention(MegatronModule):
    """softmax(q k^T / sqrt(head_dim)) v, causal inside each document; drop-in for Megatron-Core's core attention."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        if config.context_parallel_size > 1:
            raise ConfigError(
                f"parallel.context={config.context_parallel_size} needs Transformer Engine's attention, and train.backend is "
                f"torch here; use a GPU with requirements-gpu.txt installed, or set parallel.context=1"
            )
        self.scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """query [t, heads, d], key and value [t, groups, d], packed documents one after another -> [t, heads * d].

        Without `packed_seq_params` the inputs are [s, b, n, d], each sequence one document -> [s, b, heads * d].
        """
        if packed_seq_params is None:
            query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
            return _causal(query, key, value, self.scale).permute(2, 0, 1, 3).flatten(2)
        if query.is_cuda and _flash_takes(query):
            return _varlen(query, key, value, packed_seq_params, self.scale)
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        # torch's kernel for CPUs takes bf16, but its backward pass is then half as fast as in fp32.
        dtype = query.dtype if query.is_cuda else torch.float32
        inputs = (tensor.to(dtype).transpose(0, 1).split(lengths, dim=1) for tensor in (query, key, value))
        documents = zip(*inputs, strict=True)
        outputs = [_causal(q[None], k[None], v[None], self.scale)[0].transpose(0, 1) for q, k, v in documents]
        return torch.cat(outputs).flatten(1).to(query.dtype)


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """[b, heads, s, d] and [b, groups, s, d] -> [b, heads, s, d]."""
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)


def _flash_takes(query: Tensor) -> bool:
    width = query.shape[-1]
    return query.dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256


def _varlen(query: Tensor, key: Tensor, value: Tensor, packed: PackedSeqParams, scale: float | None) -> Tensor:
    """One flash attention over all documents of the row, [t, heads, d] -> [t, heads * d]."""
    from torch.nn.attention import varlen  # here: it brings torch's compiler along, a second of every start on a CPU

    repeats = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {}
    if repeats > 1 and "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters:  # torch 2.13 has it, 2.11 not
        options["enable_gqa"] = True
    elif repeats > 1:
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    borders, longest = packed.cu_seqlens_q, packed.max_seqlen_q
    causal = (-1, 0)  # the window: all tokens before, none behind
    output = varlen.varlen_attn(
        query, key, value, borders, borders, longest, longest, scale=scale, window_size=causal, **options
    )
    assert isinstance(output, Tensor)  # a pair only if auxiliary results are asked for
    return output.flatten(1)
