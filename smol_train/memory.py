"""Memory of one device and cost of a checkpoint, by arithmetic from the configuration. plan.py prints it; nothing is measured.

Per parameter that a device holds, in bytes, with Megatron-Core's distributed optimizer:

           weights   gradients   optimizer                                                  on disk
    bf16      2      4 (fp32)    12 / (DP x CP): fp32 master, exp_avg, exp_avg_sq           14: weights + the optimizer's 12
    fp32      4      4            8 / (DP x CP): exp_avg, exp_avg_sq                        16: likewise, weights twice

Muon and AdEMAMix keep their states whole on every data-parallel rank and store each tensor once: AdEMAMix 4 bytes more than
AdamW, Muon 4 less where it keeps one momentum, in the layers' matrices (a change of optim.muon.parameters is not followed).

Activations follow Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4,
adapted: no dropout masks, flash attention (no score matrix, but 4 bytes of log-sum-exp per head), key-value heads counted
as they are, and SwiGLU's three ffn-wide tensors in place of one pair. One layer keeps for the backward pass, per token:

    4 hidden                  input and output of both norms; divided by TP with sequence parallelism
    (2 query + 2 kv) / TP     query, key, value, and the attention's output
    3 ffn / TP                gate, up, and their product

elements. Without Transformer Engine's fusions more is kept. Recomputation leaves out the last line (selective) or everything
but the layer's input (full), and has what it left out of one layer and one row again while that layer's backward pass runs.

With v model chunks a stage, an interleaved pipeline of p stages keeps up to 2 (p - s - 1) + (v - 1) p + 1 rows of stage s,
each in one chunk (Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters", section 2.2.2, and
megatron.core's get_pp_rank_microbatches); without chunks p - s rows of all the stage's layers.

Left out: the CUDA context (about 0.5 GiB), NCCL's buffers, workspaces, fragmentation, and what lives only within one kernel.
"""

from typing import Literal, NamedTuple

from smol_config import Section
from smol_model.config import ModelConfig
from smol_train.config import RunConfig
from smol_train.sections.layout import ParallelConfig, Recompute

Precision = Literal["bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")


class _Bytes(NamedTuple):
    """Bytes per parameter, per kept activation, per logit."""

    weight: int
    gradient: int
    optimizer: int
    disk: int
    activation: int
    logit: int


# Logits: the head's output in the run's precision, and the fp32 copy that the cross entropy turns into its gradient in
# place (in fp32 runs they are one tensor; Transformer Engine's fused cross entropy can do without the copy).
_BYTES: dict[Precision, _Bytes] = {"bf16": _Bytes(2, 4, 12, 14, 2, 2 + 4), "fp32": _Bytes(4, 4, 8, 16, 4, 4)}


class DeviceMemory(Section):
    """Bytes on the fullest device: the ranks of pipeline stage `pipeline_stage`."""

    pipeline_stage: int
    """0-based."""
    parameters: int
    """That one device holds."""
    micro_batches_in_flight: int
    """Rows whose activations are held at once (one-forward-one-backward schedule), each in one model chunk."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    """On the last pipeline stage only."""
    total: int


class SaveCost(Section):
    """What one kind of save costs beyond writing: figures extrapolated from a measurement."""

    sharding: Literal["dp_reshardable", "fully_reshardable"]
    when: str
    pause_seconds: float
    """Training stands still while the optimizer's state is gathered."""
    host_bytes_per_rank: int
    """Extra host memory while it is."""


class CheckpointCost(Section):
    """Size of a checkpoint and cost of both kinds of saves."""

    disk_bytes: int
    saves: list[SaveCost]
    basis: str
    """Where the pauses come from."""


def device_memory(config: RunConfig, precision: Precision, data_parallel: int) -> DeviceMemory:
    """The fullest device's memory in `precision`, on `data_parallel` copies of the model."""
    stages = (_stage_memory(config, precision, data_parallel, stage) for stage in range(config.parallel.pipeline))
    return max(stages, key=lambda memory: memory.total)


def _stage_memory(config: RunConfig, precision: Precision, data_parallel: int, stage: int) -> DeviceMemory:
    model, parallel, size = config.model, config.parallel, _BYTES[precision]
    last = stage == parallel.pipeline - 1
    parameters = stage_parameters(model, parallel.tensor, parallel.pipeline, stage)
    row = config.train.micro_batch_size * config.data.sequence_length // parallel.context
    micro_batches = config.train.global_batch_size // (config.train.micro_batch_size * data_parallel)
    in_flight = rows_in_flight(parallel, stage, micro_batches)
    whole, kept = (
        layer_activation_bytes(model, parallel.tensor, parallel.sequence, size.activation, recompute)
        for recompute in ("none", parallel.recompute)
    )
    chunk_layers = model.num_layers // (parallel.pipeline * parallel.virtual_pipeline)
    per_token = in_flight * chunk_layers * kept + whole - kept
    if last:  # input and output of the final norm
        per_token += 2 * model.hidden_size * size.activation // (parallel.tensor if parallel.sequence else 1)
    parts = {
        "weights": parameters * size.weight,
        "gradients": parameters * size.gradient,
        "optimizer": -(
            -optimizer_bytes(config, precision, parameters, stage_matrices(model, parallel.tensor, parallel.pipeline))
            // (data_parallel * parallel.context if config.optim.distributed else 1)
        ),
        "activations": row * per_token,
        "logits": row * (model.vocab_size // parallel.tensor) * size.logit if last else 0,
    }
    return DeviceMemory(
        pipeline_stage=stage,
        parameters=parameters,
        micro_batches_in_flight=in_flight,
        **parts,
        total=sum(parts.values()),
    )


def rows_in_flight(parallel: ParallelConfig, stage: int, micro_batches: int) -> int:
    """Rows whose activations a stage holds at once, each in one of its chunks: the formula at the head of this file."""
    stages, chunks = parallel.pipeline, parallel.virtual_pipeline
    if chunks == 1:
        return min(stages - stage, micro_batches)
    return min(2 * (stages - stage - 1) + (chunks - 1) * stages + 1, chunks * micro_batches)


def stage_parameters(model: ModelConfig, tensor: int, pipeline: int, stage: int) -> int:
    """Parameters on one device of a pipeline stage: matrices and biases are split over TP, norms are whole on each rank.

    A tied embedding lies on the first and on the last stage; an untied head on the last.
    """
    norms = 2 * model.hidden_size + (2 * model.kv_channels if model.qk_norm else 0)
    layer = norms + (model.layer_parameters - norms) // tensor
    parameters = layer * (model.num_layers // pipeline)
    first, last = stage == 0, stage == pipeline - 1
    tables = 1 if first and last and model.tie_embeddings else first + last
    return parameters + tables * model.embedding_parameters // tensor + (model.hidden_size if last else 0)


def stage_matrices(model: ModelConfig, tensor: int, pipeline: int) -> int:
    """Parameters in the layers' matrices on one device: what Muon updates."""
    vectors = 2 * model.hidden_size + model.attention_vector_parameters
    return (model.layer_parameters - vectors) // tensor * (model.num_layers // pipeline)


def optimizer_bytes(config: RunConfig, precision: Precision, parameters: int, matrices: int) -> int:
    """Bytes of the optimizer's states of so many parameters, `matrices` of them in the layers' matrices, shared by no one."""
    extra = {"adamw": 0, "muon": -4 * matrices, "ademamix": 4 * parameters}[config.optim.optimizer]
    return parameters * _BYTES[precision].optimizer + extra


def layer_activation_bytes(model: ModelConfig, tensor: int, sequence: bool, element: int, recompute: Recompute = "none") -> int:
    """Bytes that one layer keeps of one token for the backward pass: the formula at the head of this file."""
    if recompute == "full":
        return element * model.hidden_size // (tensor if sequence else 1)
    query, key_value = model.num_attention_heads * model.kv_channels, model.query_groups * model.kv_channels
    norms = 4 * model.hidden_size // (tensor if sequence else 1)
    split = 2 * query + 2 * key_value + (3 * model.ffn_hidden_size if recompute == "none" else 0)
    return element * (norms + split // tensor) + 4 * model.num_attention_heads // tensor


# --- checkpoints -------------------------------------------------------------------------------------------------------

# A fully_reshardable save of 117M parameters on two data-parallel ranks: 12.0 s and 3.1 GiB more host memory per rank
# before the first byte was written; dp_reshardable: 0.00 s, as every rank writes the share that it holds.
_MEASURED_PARAMETERS = 117e6
_GATHER_SECONDS_PER_PARAMETER = 12.0 / _MEASURED_PARAMETERS
_GATHER_BYTES_PER_PARAMETER = 27
_BASIS = (
    "extrapolated in proportion to the parameters per rank from one measurement: 117M parameters, 2 ranks, gloo on a CPU host, "
    "12.0 s and 27 bytes per parameter; not measured at this size or on a GPU"
)


def checkpoint_cost(config: RunConfig, parameters_per_rank: int) -> CheckpointCost:
    """Size on disk and the pauses of both kinds of saves."""
    fully = SaveCost(
        sharding="fully_reshardable",
        when="a stage's end, a signal, on request, the run's end: any TP, PP and DP can go on from it",
        pause_seconds=parameters_per_rank * _GATHER_SECONDS_PER_PARAMETER,
        host_bytes_per_rank=parameters_per_rank * _GATHER_BYTES_PER_PARAMETER,
    )
    periodic = SaveCost(
        sharding="dp_reshardable", when="periodic: another DP can go on from it", pause_seconds=0.0, host_bytes_per_rank=0
    )
    if config.train.precision == "fp32":  # Megatron-Core cannot load dp_reshardable state of fp32 parameters
        periodic = fully.model_copy(update={"when": "periodic: fp32 runs always save in this way"})
    model, size = config.model, _BYTES[config.train.precision]
    if config.optim.distributed:
        return CheckpointCost(disk_bytes=model.parameters * size.disk, saves=[periodic, fully], basis=_BASIS)
    every = "every save: any TP, PP and DP can go on from it"
    states = optimizer_bytes(config, config.train.precision, model.parameters, stage_matrices(model, 1, 1))
    return CheckpointCost(
        disk_bytes=model.parameters * size.weight + states,
        saves=[fully.model_copy(update={"when": every, "pause_seconds": 0.0, "host_bytes_per_rank": 0})],
        basis="nothing is gathered, since every rank holds the states of its weights; not measured",
    )
