"""Core attention over packed documents for the torch backend; Transformer Engine brings its own for the te backend.

Megatron-Core's local attention refuses packed sequences, so the torch backend's layer spec names this class instead.
Documents never see each other: on the CPU each document is one causal scaled-dot-product attention of its own, on
CUDA one variable-length flash attention covers the row. Either way the cost is the sum of the squared lengths.
"""

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


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
            raise ValueError(
                f"context parallelism {config.context_parallel_size} needs Transformer Engine's attention; use the te backend"
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
            output = _causal(*(tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)), self.scale)
            return output.permute(2, 0, 1, 3).flatten(2)
        if query.is_cuda:
            return _varlen(query, key, value, packed_seq_params, self.scale)
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        documents = zip(*(tensor.transpose(0, 1).split(lengths, dim=1) for tensor in (query, key, value)), strict=True)
        outputs = [_causal(q[None], k[None], v[None], self.scale)[0].transpose(0, 1) for q, k, v in documents]
        return torch.cat(outputs).flatten(1)


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """[b, heads, s, d] and [b, groups, s, d] -> [b, heads, s, d]."""
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)


def _varlen(query: Tensor, key: Tensor, value: Tensor, packed: PackedSeqParams, scale: float | None) -> Tensor:
    """One flash attention over all documents of the row, [t, heads, d] -> [t, heads * d]."""
    from torch.nn.attention.varlen import varlen_attn  # CUDA builds only

    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:  # torch 2.11's varlen_attn has no grouped-query switch; later ones take this path as well
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    cu, longest = packed.cu_seqlens_q, packed.max_seqlen_q
    return varlen_attn(query, key, value, cu, cu, longest, longest, scale=scale, window_size=(-1, 0)).flatten(1)
