"""Seconds of a step on paper: what a layout costs on a given kind of GPU. plan.py (--gpu) and search.py use it.

    one micro-batch, slowest stage   matmuls + attention + elementwise kernels (recomputed ones twice), by KERNEL_SHARE
                                     + exposed tensor-parallel collectives + exposed context-parallel ring + stage transfers
    one step                         micro-batches x that, + pipeline bubble + exposed data-parallel traffic + optimizer

Every term is a pure function below with its formula and source; sizes are elements and tokens, rates bytes or FLOPs per
second, results seconds. Hardware figures are published; KERNEL_SHARE alone is calibrated, on one published run. Nothing
here was measured by this repository. docs/results/scaling_paper.md holds the model against other published runs.

Left out: kernel launches (a host that cannot keep up hurts small models and small micro-batches most), latency of
collectives, stragglers, Muon's products, evaluation, checkpoints, data loading.
"""

import math
from dataclasses import dataclass

from smol_config import ConfigError, Section
from smol_model.config import ModelConfig
from smol_train.config import RunConfig
from smol_train.gpus import GPUS_PER_NODE, Gpu
from smol_train.memory import stage_parameters

KERNEL_SHARE = 0.555
"""Kernel time by the formulas over kernel time in a real run: the one calibrated number. It is what SmolLM3's 13,817 tokens/s
and GPU on 384 H100s (median, Smol Training Playbook) leave: unfused kernels, launches, stragglers, sustained clocks. By the
formulas alone (1.0) that run would reach 24,272; other trainers came nearer to it (docs/results/scaling_paper.md)."""

_TILES = ((128, 256), (256, 128), (128, 128))
_LOGIT_BYTES = 52
"""Per logit, HBM traffic of the unfused fp32 cross entropy (megatron.core's vocab_parallel_cross_entropy): to fp32 2+4,
maximum 4, subtract 4+4, exp 4+4, sum 4, normalise 4+4, backward scale 4+4, to bf16 4+2."""


class StepTime(Section):
    """Seconds of one optimizer step by cause, and what follows."""

    gpu: str
    matmuls: float
    attention: float
    elementwise: float
    tensor_parallel: float
    """Exposed."""
    context_parallel: float
    """Exposed."""
    pipeline_transfers: float
    pipeline_bubble: float
    data_parallel: float
    """Exposed."""
    optimizer: float
    total: float
    tokens_per_second_per_gpu: float
    mfu: float
    """ModelConfig.flops_per_token (attention over the full square) over the GPU's peak."""


# --- one micro-batch -----------------------------------------------------------------------------------------------------


def matmul_seconds(gpu: Gpu, m: int, n: int, k: int) -> float:
    """An m x k by k x n product in bf16: the larger of its padded FLOPs and its bytes (roofline).

    Output tiles are whole and run in whole waves over the multiprocessors; the inner dimension may be split in pieces of
    at least 1,024 to fill the last wave. Source: NVIDIA, "Matrix Multiplication Background User's Guide", tile and wave
    quantization.
    """
    padded = min(
        math.ceil(math.ceil(m / rows) * math.ceil(n / columns) * splits / gpu.multiprocessors) / splits * rows * columns
        for rows, columns in _TILES
        for splits in range(1, min(max(k // 1024, 1), 8) + 1)
    )
    work = 2 * padded * gpu.multiprocessors * k / gpu.matmul_rate
    return max(work, 2 * (m * k + k * n + m * n) / gpu.hbm_rate)


def layer_matmuls(model: ModelConfig, tensor: int) -> list[tuple[int, int]]:
    """(inputs, outputs) of a layer's four products on one rank: query-key-value, attention's output, gate and up, down."""
    query, key_value = model.num_attention_heads * model.kv_channels, model.query_groups * model.kv_channels
    h, f = model.hidden_size, model.ffn_hidden_size
    return [(h, (query + 2 * key_value) // tensor), (query // tensor, h), (h, 2 * f // tensor), (f // tensor, h)]


def linear_seconds(gpu: Gpu, tokens: int, inputs: int, outputs: int) -> tuple[float, float]:
    """Forward and backward of `tokens` through inputs x outputs weights: y = xW, then dx = dy W^T, dW = x^T dy.

    The gradient is added to an fp32 buffer: 8 bytes per weight and micro-batch beside the product.
    """
    accumulate = 8 * inputs * outputs / gpu.hbm_rate
    backward = matmul_seconds(gpu, tokens, inputs, outputs) + matmul_seconds(gpu, inputs, outputs, tokens) + accumulate
    return matmul_seconds(gpu, tokens, outputs, inputs), backward


def attention_seconds(gpu: Gpu, model: ModelConfig, tensor: int, tokens: int, attended: float) -> tuple[float, float]:
    """Forward and backward of one layer's flash attention; `attended` is the mean number of keys that a query sees.

    4 x heads x head_dim x attended FLOPs per token forward (scores and values), 2.5 times that backward: five products
    for two, as the scores are computed again (Dao 2023, "FlashAttention-2", section 3.1).
    """
    forward = 4 * model.num_attention_heads * model.kv_channels * attended * tokens / tensor / gpu.attention_rate
    return forward, 2.5 * forward


def elementwise_seconds(gpu: Gpu, model: ModelConfig, tensor: int, sequence: bool, tokens: int) -> tuple[float, float]:
    """Forward and backward of one layer's norms, residuals, rotary embedding and SwiGLU, which wait for HBM.

    bf16 elements read and written per token, each kernel on its own: two norms 4h, two residual sums 6h, both divided by
    the tensor-parallel ranks with sequence parallelism; rotary 2 (query + key); SwiGLU 3 ffn. Backward: twice.
    """
    query, key = model.num_attention_heads * model.kv_channels, model.query_groups * model.kv_channels
    norms = 10 * model.hidden_size / (tensor if sequence else 1)
    forward = 2 * tokens * (norms + 2 * (query + key) / tensor) / gpu.hbm_rate + swiglu_seconds(gpu, model, tensor, tokens)
    return forward, 2 * forward


def swiglu_seconds(gpu: Gpu, model: ModelConfig, tensor: int, tokens: int) -> float:
    """Forward of one layer's SwiGLU: gate and up read, their product written."""
    return 2 * tokens * 3 * model.ffn_hidden_size / tensor / gpu.hbm_rate


def mean_attended(sequence_length: int, document_tokens: float | None = None) -> float:
    """Mean number of keys that a query sees: half of the window, or of documents of `document_tokens` if shorter."""
    return min(sequence_length, document_tokens or sequence_length) / 2


# --- traffic -------------------------------------------------------------------------------------------------------------


def group_bandwidth(gpu: Gpu, members: int, stride: int) -> float:
    """Bytes per second that a ring of `members` ranks, `stride` ranks apart, moves through each member.

    Inside a node NVLink; beyond it, the members of a node share their adapters' sum, as NCCL spreads its rings over them.
    """
    nvlink = gpu.nvlink_rate
    if members * stride <= GPUS_PER_NODE:
        return nvlink
    return min(nvlink, max(GPUS_PER_NODE // stride, 1) * gpu.network_rate)


def ring_seconds(gpu: Gpu, size: float, members: int, stride: int) -> float:
    """An all-gather or a reduce-scatter of `size` bytes in all: (n - 1) / n of them pass each member."""
    return (members - 1) / members * size / group_bandwidth(gpu, members, stride)


def tensor_parallel_seconds(gpu: Gpu, model: ModelConfig, tensor: int, sequence: bool, tokens: int) -> tuple[float, float]:
    """Forward and backward of one layer's exposed collectives, each over tokens x hidden bf16 elements.

    With sequence parallelism: two all-gathers and two reduce-scatters forward; backward again two all-gathers before the
    products, while the other four run beside products (Korthikanti et al. 2022, section 4.2.2, and megatron.core's
    LinearWithGradAccumulationAndAsyncCommunication). Without: two all-reduces forward, the backward's two are hidden.
    """
    one = ring_seconds(gpu, 2 * tokens * model.hidden_size, tensor, 1)
    return 4 * one, (2 * one if sequence else 0.0)


def context_parallel_seconds(gpu: Gpu, model: ModelConfig, tensor: int, context: int, tokens: int) -> tuple[float, float]:
    """Forward and backward of one layer's ring, before what attention hides of it.

    Keys and values of `tokens` (one rank's share) go around in context - 1 hops; backward, they and their gradients
    (Liu et al. 2023, "Ring Attention with Blockwise Transformers").
    """
    one = 2 * 2 * tokens * model.query_groups * model.kv_channels / tensor
    forward = (context - 1) * one / group_bandwidth(gpu, context, tensor)
    return forward, 2 * forward


def pipeline_bubble(stages: int, micro_batches: int, chunks: int = 1) -> float:
    """Idle time of a pipeline over its busy time: (p - 1) / (v m) (Narayanan et al. 2021, section 2.2)."""
    return (stages - 1) / (chunks * micro_batches)


def pipeline_transfer_seconds(hop: float, chunks: int, overlap: bool, work: tuple[float, float]) -> float:
    """Exposed messages of one micro-batch, each of `hop` seconds: one a chunk and direction, `work` being the seconds of all
    chunks forward and backward. An interleaved pipeline with overlap sends while the next chunk computes."""
    if chunks == 1 or not overlap:
        return 2 * chunks * hop
    return sum(max(chunks * hop - direction, 0.0) for direction in work)


def data_parallel_seconds(gpu: Gpu, parameters: int, members: int, stride: int) -> tuple[float, float]:
    """Reduce-scatter of fp32 gradients and all-gather of bf16 weights of the `parameters` on one device."""
    return ring_seconds(gpu, 4 * parameters, members, stride), ring_seconds(gpu, 2 * parameters, members, stride)


def optimizer_seconds(gpu: Gpu, parameters: int, members: int) -> float:
    """AdamW over one rank's share of the states, and clearing the gradients, which are whole on every rank.

    Bytes per parameter of the share: norm 4; read gradient, master, two moments 16; write master, moments, bf16 weight 14.
    """
    return (34 * parameters / members + 4 * parameters) / gpu.hbm_rate


# --- one step ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Micro:
    """(forward, backward) seconds of one micro-batch on one stage, kernels by the formulas, traffic exposed."""

    matmuls: tuple[float, float]
    attention: tuple[float, float]
    elementwise: tuple[float, float]
    tensor: tuple[float, float]
    context: tuple[float, float]

    def seconds(self, direction: int, share: float) -> float:
        kernels = self.matmuls[direction] + self.attention[direction] + self.elementwise[direction]
        return kernels / share + self.tensor[direction] + self.context[direction]


def step_time(
    config: RunConfig,
    gpus: int,
    gpu: Gpu,
    document_tokens: float | None = None,
    kernel_share: float = KERNEL_SHARE,
) -> StepTime:
    """Seconds of one optimizer step of `config` on `gpus` devices, which must share its batch evenly (plan.py checks).

    `document_tokens`: mean length of the documents that attention stops at; None: attention sees whole windows.
    Raises ConfigError for fp32 runs.
    """
    model, parallel, train = config.model, config.parallel, config.train
    if train.precision != "bf16":
        raise ConfigError(f"train.precision={train.precision}: speeds are known for bf16 only; set train.precision=bf16")
    copies = gpus // parallel.model_ranks
    micro_batches = train.global_batch_size // (train.micro_batch_size * copies)
    micro = _last_stage(config, gpu, mean_attended(config.data.sequence_length, document_tokens), kernel_share)
    forward, backward = micro.seconds(0, kernel_share), micro.seconds(1, kernel_share)

    row = train.micro_batch_size * config.data.sequence_length // parallel.context
    hop = 2 * row * model.hidden_size / (parallel.tensor if parallel.sequence else 1)
    link = gpu.nvlink_rate if gpus <= GPUS_PER_NODE else gpu.network_rate
    chunks = parallel.virtual_pipeline
    transfers = 0.0
    if parallel.pipeline > 1:
        transfers = pipeline_transfer_seconds(hop / link, chunks, parallel.overlap, (forward, backward))
    busy = micro_batches * (forward + backward + transfers)

    stages = range(parallel.pipeline)
    parameters = max(stage_parameters(model, parallel.tensor, parallel.pipeline, stage) for stage in stages)
    members = copies * parallel.context
    scatter, gather = data_parallel_seconds(gpu, parameters, members, parallel.tensor)
    if not config.optim.distributed:  # gradients are all-reduced, every rank updates everything
        scatter, gather = 2 * scatter, 0.0
    owners = members if config.optim.distributed else 1
    if parallel.overlap:  # the last micro-batch's backward hides the one, the first one's forward the other
        scatter, gather = max(scatter - backward, 0.0), max(gather - forward, 0.0)

    parts = {
        "matmuls": micro_batches * sum(micro.matmuls) / kernel_share,
        "attention": micro_batches * sum(micro.attention) / kernel_share,
        "elementwise": micro_batches * sum(micro.elementwise) / kernel_share,
        "tensor_parallel": micro_batches * sum(micro.tensor),
        "context_parallel": micro_batches * sum(micro.context),
        "pipeline_transfers": micro_batches * transfers,
        "pipeline_bubble": busy * pipeline_bubble(parallel.pipeline, micro_batches, chunks),
        "data_parallel": scatter + gather,
        "optimizer": optimizer_seconds(gpu, parameters, owners) / kernel_share,
    }
    total = sum(parts.values())
    rate = config.tokens_per_step / total / gpus
    mfu = rate * model.flops_per_token(config.data.sequence_length) / gpu.flops
    return StepTime(gpu=gpu.name, **parts, total=total, tokens_per_second_per_gpu=rate, mfu=mfu)


def _last_stage(config: RunConfig, gpu: Gpu, attended: float, kernel_share: float) -> _Micro:
    """The last stage, which has the head beside its layers and is the slowest, layers being shared evenly.

    Backward, full recomputation repeats every layer's forward pass; selective the MLP's: two of its four products, SwiGLU, and
    half of its tensor-parallel collectives.
    """
    model, parallel = config.model, config.parallel
    tensor, layers = parallel.tensor, model.num_layers // parallel.pipeline
    tokens = config.train.micro_batch_size * config.data.sequence_length // parallel.context
    linears = [linear_seconds(gpu, tokens, *shape) for shape in layer_matmuls(model, tensor)]
    head = linear_seconds(gpu, tokens, model.hidden_size, model.vocab_size // tensor)
    logits = _LOGIT_BYTES * tokens * (model.vocab_size // tensor) / gpu.hbm_rate
    attention = attention_seconds(gpu, model, tensor, tokens, attended)
    elementwise = elementwise_seconds(gpu, model, tensor, parallel.sequence, tokens)
    traffic = tensor_parallel_seconds(gpu, model, tensor, parallel.sequence, tokens)
    ring = context_parallel_seconds(gpu, model, tensor, parallel.context, tokens)
    exposed = [max(hops - work / kernel_share, 0.0) for hops, work in zip(ring, attention, strict=True)]

    def of_stage(
        layer: tuple[float, float] | list[float], mlp_forward: float, extra: tuple[float, float] = (0.0, 0.0)
    ) -> tuple[float, float]:
        again = {"none": 0.0, "selective": mlp_forward, "full": layer[0]}[parallel.recompute]
        return layers * layer[0] + extra[0], layers * (layer[1] + again) + extra[1]

    return _Micro(
        matmuls=of_stage(
            (sum(one[0] for one in linears), sum(one[1] for one in linears)), sum(one[0] for one in linears[2:]), head
        ),
        attention=of_stage(attention, 0.0),
        elementwise=of_stage(elementwise, swiglu_seconds(gpu, model, tensor, tokens), (2 * logits / 3, logits / 3)),
        tensor=of_stage(traffic, traffic[0] / 2),
        context=of_stage(exposed, 0.0),
    )
