"""The weight table: which Megatron-Core tensor is which Hugging Face tensors. Both directions and `verify` read it.

    Megatron-Core key                                   Hugging Face name(s)
    embedding.word_embeddings.weight                    model.embed_tokens.weight
    decoder.layers.N.self_attention.linear_qkv.weight   model.layers.N.self_attn.{q,k,v}_proj.weight     grouped
    decoder.layers.N.self_attention.linear_qkv.bias     model.layers.N.self_attn.{q,k,v}_proj.bias       grouped, Qwen2 only
    decoder.layers.N.self_attention.q_layernorm.weight  model.layers.N.self_attn.q_norm.weight            Qwen3 only; k alike
    decoder.layers.N.mlp.linear_fc1.weight              model.layers.N.mlp.{gate,up}_proj.weight         stacked
    ...                                                 ...
    output_layer.weight                                 lm_head.weight      only where embeddings are not tied

Keys are the ones on disk, which are the same for both backends and for every layout of ranks. All families share these
names. A tied head has no tensor of its own on either side; a folder that holds it all the same is read if it is equal.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conversion import ConversionError
from smol_model.config import ModelConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Transform:
    """How one Megatron-Core tensor becomes Hugging Face tensors, and back."""

    split: Callable[[Tensor, ModelConfig], list[Tensor]]
    merge: Callable[[Sequence[Tensor], ModelConfig], Tensor]


@dataclass(frozen=True)
class Weight:
    """One row of the table, for one layer."""

    megatron: str
    huggingface: tuple[str, ...]
    shape: Shape
    """Of the Megatron-Core tensor, over all ranks."""
    transform: Transform

    def split(self, tensor: Tensor, model: ModelConfig) -> dict[str, Tensor]:
        """Megatron-Core tensor of `shape` -> the Hugging Face tensors by name; dtype kept, views where possible."""
        return dict(zip(self.huggingface, self.transform.split(tensor, model), strict=True))

    def merge(self, tensors: Sequence[Tensor], model: ModelConfig) -> Tensor:
        """The Hugging Face tensors in the table's order -> the Megatron-Core tensor of `shape`; dtype kept."""
        return self.transform.merge(tensors, model)

    def huggingface_shapes(self, model: ModelConfig) -> dict[str, Shape]:
        """Shapes of the Hugging Face tensors by name."""
        split = self.split(torch.empty(self.shape, device="meta"), model)
        return {name: tuple(tensor.shape) for name, tensor in split.items()}


# --- transforms ------------------------------------------------------------------------------------------------------------


def split_qkv(qkv: Tensor, model: ModelConfig) -> list[Tensor]:
    """[groups * (heads/groups + 2) * d, h] -> query [heads * d, h], key and value [groups * d, h]; a bias alike, without h.

    Megatron-Core stores each key-value group's query heads with its key and value, so that tensor-parallel ranks cut the
    matrix between groups; Hugging Face stores all queries, all keys, all values.
    """
    groups, width, hidden = model.query_groups, model.kv_channels, qkv.shape[1:]
    queries = model.num_attention_heads // groups * width
    grouped = qkv.view(groups, queries + 2 * width, *hidden)
    return [part.reshape(-1, *hidden) for part in grouped.split([queries, width, width], dim=1)]


def merge_qkv(parts: Sequence[Tensor], model: ModelConfig) -> Tensor:
    """Inverse of split_qkv."""
    hidden = parts[0].shape[1:]
    return torch.cat([part.view(model.query_groups, -1, *hidden) for part in parts], dim=1).reshape(-1, *hidden)


def split_gate_up(stacked: Tensor, model: ModelConfig) -> list[Tensor]:
    """[2 * ffn, h] -> gate [ffn, h], up [ffn, h]; the gate comes first."""
    return list(stacked.split(model.ffn_hidden_size))


def merge_gate_up(parts: Sequence[Tensor], model: ModelConfig) -> Tensor:
    """Inverse of split_gate_up."""
    return torch.cat(list(parts))


SAME = Transform(split=lambda tensor, model: [tensor], merge=lambda parts, model: parts[0])
GROUPED_QKV = Transform(split_qkv, merge_qkv)
GATE_UP = Transform(split_gate_up, merge_gate_up)


# --- the table -------------------------------------------------------------------------------------------------------------


def weight_table(model: ModelConfig) -> list[Weight]:
    """All weights of `model`, in the order in which transformers lists a model's parameters."""
    hidden = model.hidden_size
    table = [Weight("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), (model.vocab_size, hidden), SAME)]
    for layer in range(model.num_layers):
        table += _layer(model, f"decoder.layers.{layer}.", f"model.layers.{layer}.")
    table.append(Weight("decoder.final_layernorm.weight", ("model.norm.weight",), (hidden,), SAME))
    if not model.tie_embeddings:
        table.append(Weight("output_layer.weight", ("lm_head.weight",), (model.vocab_size, hidden), SAME))
    return table


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[Weight]:
    hidden, ffn, width = model.hidden_size, model.ffn_hidden_size, model.kv_channels
    heads, groups = model.num_attention_heads, model.query_groups

    def row(megatron: str, names: str, shape: Shape, transform: Transform = SAME, kind: str = "weight") -> Weight:
        return Weight(f"{ours}{megatron}", tuple(f"{theirs}{name}.{kind}" for name in names.split()), shape, transform)

    qkv, qkv_rows = "self_attn.q_proj self_attn.k_proj self_attn.v_proj", (heads + 2 * groups) * width
    qkv_bias = row("self_attention.linear_qkv.bias", qkv, (qkv_rows,), GROUPED_QKV, "bias")

    # One norm for all query heads, one for all key heads: every tensor-parallel rank holds them whole.
    qk_norms = [row(f"self_attention.{part}_layernorm.weight", f"self_attn.{part}_norm", (width,)) for part in "qk"]
    return [
        row("self_attention.linear_qkv.weight", qkv, (qkv_rows, hidden), GROUPED_QKV),
        *([qkv_bias] if model.qkv_bias else []),
        row("self_attention.linear_proj.weight", "self_attn.o_proj", (hidden, heads * width)),
        *(qk_norms if model.qk_norm else []),
        row("mlp.linear_fc1.weight", "mlp.gate_proj mlp.up_proj", (2 * ffn, hidden), GATE_UP),
        row("mlp.linear_fc2.weight", "mlp.down_proj", (hidden, ffn)),
        # A norm is stored under the linear that follows it, where Transformer Engine fuses the two.
        row("self_attention.linear_qkv.layer_norm_weight", "input_layernorm", (hidden,)),
        row("mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm", (hidden,)),
    ]


def huggingface_shapes(model: ModelConfig) -> dict[str, Shape]:
    """Shape of every Hugging Face tensor of `model`, in transformers' order."""
    return {name: shape for weight in weight_table(model) for name, shape in weight.huggingface_shapes(model).items()}


def check_tensors(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: str) -> None:
    """Raise ConversionError naming the tensors of `where` that are missing, unexpected or of another shape."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {list(found[name])} instead of {list(expected[name])}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    faults = [
        f"{fault}: {_few(names)}"
        for fault, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if faults:
        raise ConversionError(
            f"{where}: tensors do not fit its configuration ({'; '.join(faults)}); the weights and the configuration must "
            f"be of one model"
        )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, byte for byte: a NaN equals itself, -0 does not equal 0."""
    return a.dtype == b.dtype and torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or Inf."""
    return all(bool(extreme.isfinite()) for extreme in tensor.aminmax())  # twenty times as fast as isfinite().all()


def check_finite(tensor: Tensor, name: str, where: str) -> None:
    """Raise ConversionError when tensor `name` of `where` holds NaN or Inf."""
    if not is_finite(tensor):
        raise ConversionError(
            f"{where}: {name} holds NaN or Inf; use an earlier state of the model, or convert it all the same with --allow-nan"
        )


def _few(names: Iterable[str], limit: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
