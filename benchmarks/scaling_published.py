"""Published throughputs of other trainers, none used in calibrating smol_train/speed.py. scaling_model.py predicts them."""

from dataclasses import dataclass

from smol_config import parse
from smol_train.config import RunConfig

FOUNDRY = "llm-foundry"
TORCHTITAN = "torchtitan"
SOURCES = {
    FOUNDRY: "mosaicml/llm-foundry at 061f2c7, scripts/train/benchmarking/README.md, H100 80GB BF16: FSDP, no recomputation",
    TORCHTITAN: "pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md: FSDP, torch.compile, selective recomputation",
}

# Ultra-Scale Playbook (nanotron), figure tp_sp_scaling: tokens/s and GPU by tensor-parallel size with sequence parallelism,
# and the micro-batch of each. The figure does not name the shape, so only the ratios to the first are compared.
ULTRASCALE = {2: (14_167.25, 4), 4: (13_460.16, 10), 8: (10_888.53, 20), 16: (6_159.3, 40)}


@dataclass(frozen=True)
class Published:
    """One row of a published table, on H100s, without tensor, pipeline or context parallelism."""

    name: str
    source: str
    hidden: int
    layers: int
    heads: int
    window: int
    micro_batch: int
    global_batch: int
    gpus: int
    tokens_per_second_per_gpu: float
    groups: int | None = None
    ffn: int | None = None
    """None: a SwiGLU of the parameters of MPT's MLP, whose two matrices are 4 x hidden wide."""
    vocabulary: int = 50_368
    tied: bool = True

    def config(self) -> RunConfig:
        """The run as one of ours. FSDP's gathers cost more than the distributed optimizer's; that is left out."""
        model: dict[str, object] = {
            "num_layers": self.layers,
            "hidden_size": self.hidden,
            "ffn_hidden_size": self.ffn or 8 * self.hidden // 3,
            "num_attention_heads": self.heads,
            "num_query_groups": self.groups or self.heads,
            "vocab_size": self.vocabulary,
            "tie_embeddings": self.tied,
        }
        return run_config(model, self.window, self.micro_batch, self.global_batch)


PUBLISHED = (
    Published("MPT-760M, 2k", FOUNDRY, 1536, 24, 12, 2048, 24, 768, 32, 67_971),
    Published("MPT-1B, 2k", FOUNDRY, 2048, 24, 16, 2048, 14, 112, 8, 45_455),
    Published("MPT-1B, 2k", FOUNDRY, 2048, 24, 16, 2048, 20, 1280, 64, 44_402),
    Published("MPT-1B, 32k", FOUNDRY, 2048, 24, 16, 32_768, 1, 32, 8, 12_025),
    Published("MPT-3B, 2k", FOUNDRY, 2560, 32, 20, 2048, 10, 480, 16, 24_142),
    Published("MPT-3B, 2k", FOUNDRY, 2560, 32, 20, 2048, 6, 1152, 64, 22_525),
    Published("MPT-3B, 4k", FOUNDRY, 2560, 32, 20, 4096, 5, 240, 8, 20_964),
    Published("MPT-3B, 16k", FOUNDRY, 2560, 32, 20, 16_384, 1, 48, 8, 11_152),
    Published("MPT-7B, 2k", FOUNDRY, 4096, 32, 32, 2048, 6, 48, 8, 10_643),
    Published("Llama3.1-8B, 8k", TORCHTITAN, 4096, 32, 32, 8192, 2, 16, 8, 6_667, 8, 14_336, 128_256, False),
    Published("Llama3.1-8B, 8k", TORCHTITAN, 4096, 32, 32, 8192, 2, 256, 128, 6_514, 8, 14_336, 128_256, False),
)


def run_config(
    model: dict[str, object], window: int, micro_batch: int, global_batch: int, parallel: dict[str, object] | None = None
) -> RunConfig:
    """A run of `model` with nothing in it but what a throughput depends on."""
    stage = {"name": "all", "steps": 1, "weights": {"text": 1.0}}
    mapping = {
        "model": model,
        "data": {"tokenizer": "none", "sequence_length": window, "datasets": {"text": "none"}, "stages": [stage]},
        "train": {"output_dir": "none", "global_batch_size": global_batch, "micro_batch_size": micro_batch},
        "optim": {"learning_rate": 1.0e-4},
        "parallel": parallel or {},
    }
    return parse(RunConfig, mapping, source="a published run")
