"""What ranks of the test pool do with the network: each function runs on every rank of its world and returns plain values.

Networks of any layout and backend get the same weights from `fill`, which draws every parameter from a generator seeded by
its name in a checkpoint and takes this rank's part of it.
"""

import contextlib
import logging
import sys
import types
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from smol_data.batch import PackedBatch, pack
from smol_data.shards import Window
from smol_model.config import ModelConfig

VOCABULARY = 128


def tiny(**changes: Any) -> ModelConfig:
    """SmolLM3's architecture, 4 layers of width 64, with `changes`."""
    settings = {
        "num_layers": 4,
        "hidden_size": 64,
        "ffn_hidden_size": 96,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "vocab_size": VOCABULARY,
        "no_rope": 4,
    }
    return ModelConfig(**{**settings, **changes})


@contextlib.contextmanager
def world(tensor: int = 1, sequence: bool = False) -> Iterator[dict[str, Any]]:
    """The job's process groups; yields the matching fields of Megatron-Core's configuration."""
    from smol_train.model import parallel_options
    from smol_train.parallel import process_groups
    from smol_train.sections.layout import ParallelConfig

    parallel = ParallelConfig(tensor=tensor, sequence=sequence)
    with process_groups(parallel, seed=1):
        yield parallel_options(parallel)


def build(model: ModelConfig, options: Mapping[str, Any], backend: Any = "torch", **arguments: Any) -> Any:
    from smol_model.spec import build_model, transformer_config

    return build_model(model, transformer_config(model, backend, **options), backend, 256, **arguments)


def fill(network: Any) -> None:
    """Matrices with standard deviation 1/sqrt(columns), norms near 1: far from uniform attention, logits of about 1."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    from smol_train.optim import METADATA

    state = network.sharded_state_dict(metadata=METADATA)
    apply_factories(state)
    for entry in state.values():
        for part in entry if isinstance(entry, list) else [entry]:  # a SwiGLU's gate and up projection come as two
            assert isinstance(part, ShardedTensor)
            shape = part.global_shape
            whole = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(part.key.encode())))
            whole = 1 + whole / 10 if len(shape) == 1 else whole / shape[-1] ** 0.5
            mine = tuple(slice(at, at + size) for at, size in zip(part.global_offset, part.local_shape, strict=True))
            part.data.detach().copy_(whole[mine])


def windows(lengths: Sequence[Sequence[int]], seed: int = 0, changed: int | None = None) -> list[Window]:
    """A window for every inner list, which holds its documents' lengths; the last document goes on behind its window.

    `changed` numbers a document, counted over all windows, whose tokens are other ones than with changed=None.
    """
    made, number = [], 0
    for index, documents in enumerate(lengths):
        tokens = np.random.default_rng([seed, index]).integers(0, VOCABULARY, sum(documents) + 1)
        for begin, end in zip(np.cumsum([0, *documents]), np.cumsum(documents), strict=False):
            if number == changed:
                tokens[begin:end] = (tokens[begin:end] + 1) % VOCABULARY
            number += 1
        made.append(Window(tokens.astype(np.int64), np.cumsum(documents)[:-1].astype(np.int32)))
    return made


def row(made: list[Window], document_mask: bool = True) -> PackedBatch:
    """Windows as the loader hands them out."""
    return pack(made, document_mask).expand()


def logits_of(model: Any, batch: PackedBatch) -> Tensor:
    """[t, vocabulary / TP]"""
    from smol_train.step import packed_sequence

    output: Tensor = model(batch.tokens, batch.position_ids, None, packed_seq_params=packed_sequence(batch))
    return output[0].detach()


# --- the network on the torch backend ----------------------------------------------------------------------------------------


def parameter_counts(models: Mapping[str, ModelConfig]) -> dict[str, int]:
    with world() as options:
        return {name: sum(p.numel() for p in build(model, options).parameters()) for name, model in models.items()}


def initial_statistics(model: ModelConfig) -> dict[str, tuple[float, float]]:
    """(mean, standard deviation) of every parameter, by its name in a checkpoint."""
    from smol_train.optim import METADATA

    with world() as options:
        network = build(model, options)
        state = network.sharded_state_dict(metadata=METADATA)
        return {state[name].key: (p.mean().item(), p.std().item()) for name, p in network.named_parameters()}


def effect_of_order(model: ModelConfig) -> list[float]:
    """By layer: how much its attention's output for a document's last token changes when the tokens before it swap places.

    Attention without positions sees a set, so only the order of a sum changes."""
    from megatron.core.packed_seq_params import PackedSeqParams

    tokens = 24
    borders = torch.tensor([0, tokens], dtype=torch.int32)
    packed = PackedSeqParams("thd", borders, borders, max_seqlen_q=tokens, max_seqlen_kv=tokens)
    hidden = torch.randn(tokens, 1, model.hidden_size, generator=torch.Generator().manual_seed(0))
    swapped = torch.cat([hidden[:-1].flip(0), hidden[-1:]])
    with world() as options:
        network = build(model, options)
        fill(network)
        positions = network.rotary_pos_emb(tokens, packed_seq=True)
        attentions = [layer.self_attention for layer in network.decoder.layers]

        def last(attention: Any, x: Tensor) -> Tensor:
            return attention(x, None, rotary_pos_emb=positions, packed_seq_params=packed)[0][-1]

        return [(last(each, hidden) - last(each, swapped)).abs().max().item() for each in attentions]


def gathered_logits(tensor: int, sequence: bool = False, **changes: Any) -> np.ndarray:
    with world(tensor, sequence) as options:
        network = build(tiny(**changes), options, gather_logits=True)
        fill(network)
        return logits_of(network, row(windows([[9, 20, 3], [32]]))).numpy()


def z_loss_errors(tensor: int, coefficient: float) -> dict[str, float]:
    """Largest differences of the loss and of its gradient from plain torch's, and how large the z-loss is."""
    from megatron.core import parallel_state

    random = torch.Generator().manual_seed(0)
    # Scaled so that some exponentials overflow float32 unless the maximum is taken off first.
    whole = (40 * torch.randn(16, 1, VOCABULARY, generator=random)).requires_grad_()
    labels, upstream = torch.randint(VOCABULARY, (1, 16), generator=random), torch.rand(1, 16, generator=random)
    plain = cross_entropy(whole[:, 0], labels[0], reduction="none")[None]
    with_z = plain + coefficient * whole[:, 0].logsumexp(-1).square()
    [gradient] = torch.autograd.grad(with_z, whole, upstream, retain_graph=True)
    [plain_gradient] = torch.autograd.grad(plain, whole, upstream)
    with world(tensor) as options:
        network = build(tiny(z_loss=coefficient), options)
        mine = slice(*(VOCABULARY // tensor * (parallel_state.get_tensor_model_parallel_rank() + i) for i in (0, 1)))
        local = whole.detach()[..., mine].clone().requires_grad_()

        def difference(wanted: Tensor, wanted_gradient: Tensor) -> tuple[float, float]:
            loss = network.compute_language_model_loss(labels, local * 1)
            [found] = torch.autograd.grad(loss, local, upstream)
            return (loss - wanted).abs().max().item(), (found - wanted_gradient[..., mine]).abs().max().item()

        loss, grad = difference(with_z, gradient)
        network.eval()
        eval_loss, eval_grad = difference(plain, plain_gradient)
    size = (with_z - plain).min().item()
    return {"loss": loss, "gradient": grad, "eval loss": eval_loss, "eval gradient": eval_grad, "z-loss": size}


def packed_attention_errors(heads: int, groups: int, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Largest differences of PackedAttention's three paths from a softmax written out head by head."""
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.transformer.enums import AttnMaskType
    from torch.nn.attention import varlen

    from smol_model import attention
    from smol_model.spec import transformer_config

    lengths, width = [5, 1, 17, 9], 16
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(sum(lengths), n, width, generator=random) for n in (heads, groups, groups))
    borders = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    packed = PackedSeqParams("thd", borders, borders, max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths))
    model = tiny(num_attention_heads=heads, num_query_groups=groups, head_dim=width)
    core = attention.PackedAttention(transformer_config(model, "torch"), 1, AttnMaskType.causal, "self")
    wanted = naive_attention(query, key, value, lengths)

    def kernel(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, **how: Any) -> Tensor:
        assert how["window_size"] == (-1, 0) and torch.equal(cu_q, cu_k) and max_q == max_k == max(lengths)
        return naive_attention(q, k, v, cu_q.diff().tolist(), how["scale"]).view_as(q)

    # The CUDA kernel cannot run here; autospec holds the call to the signature of the installed torch.
    with mock.patch.object(varlen, "varlen_attn", mock.create_autospec(varlen.varlen_attn, side_effect=kernel)):
        on_cuda = attention._varlen(query, key, value, packed, None)
    dense = core(*(x[:5, None].repeat(1, 2, 1, 1) for x in (query, key, value)), None)
    return {
        "packed": (core(query, key, value, None, packed_seq_params=packed) - wanted).abs().max().item(),
        "varlen": (on_cuda - wanted).abs().max().item(),
        "dense": (dense - wanted[:5, None]).abs().max().item(),
    }


def naive_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float | None = None) -> Tensor:
    """[t, heads, d], [t, groups, d] -> [t, heads * d]; query head h reads group h // (heads / groups)."""
    document = torch.repeat_interleave(torch.tensor(lengths))
    places = torch.arange(len(document))
    seen = (document[:, None] == document) & (places[:, None] >= places)
    outputs = []
    for head in range(query.shape[1]):
        group = head // (query.shape[1] // key.shape[1])
        scores = query[:, head] @ key[:, group].T * (scale or query.shape[2] ** -0.5)
        outputs.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value[:, group])
    return torch.cat(outputs, dim=1)


def gradient_accumulation_fusion(installed: bool) -> tuple[list[bool], list[str]]:
    """The te backend's option, asked for three times, and what was logged."""
    from smol_model import spec

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    name = "fused_weight_gradient_mlp_cuda"
    caches = (spec.importable, spec.has_gradient_accumulation_fusion)
    with mock.patch.dict(sys.modules, {name: types.ModuleType(name) if installed else None}):
        [cached.cache_clear() for cached in caches]
        spec.logger.addHandler(handler)
        spec.logger.setLevel(logging.INFO)
        try:
            options = [spec._kernel_options("te")["gradient_accumulation_fusion"] for _ in range(3)]
        finally:
            spec.logger.removeHandler(handler)
            [cached.cache_clear() for cached in caches]
    return options, [line for line in lines if line.startswith("gradient accumulation fusion")]
