"""Kinds of GPUs on paper: published peaks, and the shares of them that a run reaches. speed.py computes with them."""

from dataclasses import dataclass

from smol_config import ConfigError, nearest

GPUS_PER_NODE = 8
DEFAULT_MFU = 0.30
"""Model FLOPs utilisation where nothing better is known; SmolLM3 reached about this on 384 H100s."""
DEFAULT_PEAK_TFLOPS = 989.0
"""Dense bf16 of one H100 SXM."""

# Shares of the peaks that the Smol Training Playbook measured on SmolLM3's H100s, taken for every GPU: matrix products 714 to
# 758 of 989 TFLOP/s, HBM 3.0 of 3.35 TB/s, NVLink 364.9 of 450 GB/s, network 40 of 50 GB/s (38 to 43 point to point; eight
# of them make the 320 GB/s of its all-reduces over 3 to 16 nodes).
MATMUL_SHARE, HBM_SHARE, NVLINK_SHARE, NETWORK_SHARE = 0.744, 0.90, 0.81, 0.80


@dataclass(frozen=True)
class Gpu:
    """Peaks as published by NVIDIA. Rates are of one GPU, per second, and for links of one direction."""

    name: str
    flops: float
    """Dense bf16."""
    hbm: float
    """Bytes."""
    nvlink: float
    """Bytes, to the other GPUs of a node."""
    network: float
    """Bytes, to other nodes."""
    memory_gib: float
    multiprocessors: int
    attention_share: float
    """Of `flops`, that flash attention reaches."""

    @property
    def matmul_rate(self) -> float:
        """FLOPs per second of large bf16 products."""
        return self.flops * MATMUL_SHARE

    @property
    def attention_rate(self) -> float:
        """FLOPs per second of flash attention."""
        return self.flops * self.attention_share

    @property
    def hbm_rate(self) -> float:
        """Bytes per second, reading and writing."""
        return self.hbm * HBM_SHARE

    @property
    def nvlink_rate(self) -> float:
        """Bytes per second, one direction."""
        return self.nvlink * NVLINK_SHARE

    @property
    def network_rate(self) -> float:
        """Bytes per second, one direction."""
        return self.network * NETWORK_SHARE


# Data sheets of the A100 80GB SXM, H100 SXM, H200 SXM and DGX B200. Memory: the sheets' 80, 80, 141 and 180 GB, about as
# nvidia-smi shows them. Network: one adapter per GPU, 200 Gb/s (DGX A100), 400 Gb/s (DGX H100, H200, B200; AWS p5 has the
# same 3,200 Gb/s a node). Attention: FlashAttention-2 reaches 35 % of an H100 (Shah et al. 2024, "FlashAttention-3",
# abstract) and 50 to 73 % of an A100 (Dao 2023, abstract), of which 60 % is taken; for H200 and B200 the H100's is a guess.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 312e12, 2.039e12, 300e9, 25e9, 79.0, 108, 0.60),
        Gpu("h100", 989.4e12, 3.35e12, 450e9, 50e9, 79.0, 132, 0.35),
        Gpu("h200", 989.4e12, 4.8e12, 450e9, 50e9, 139.0, 132, 0.35),
        Gpu("b200", 2250e12, 7.7e12, 900e9, 50e9, 178.0, 148, 0.35),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`; raises ConfigError with the known names."""
    if name not in GPUS:
        raise ConfigError(f"gpu={name!r} is not a kind of GPU that the throughput model knows; {nearest(name, GPUS)}")
    return GPUS[name]


def flops_per_second(mfu: float, peak_tflops: float) -> float:
    """What one GPU does of the model's own FLOPs at an assumed utilisation. Raises ConfigError for what no GPU can."""
    if not 0 < mfu <= 1 or peak_tflops <= 0:
        raise ConfigError(
            f"mfu={mfu} and peak_tflops={peak_tflops}: the first must lie above 0 and at most at 1, the second above 0"
        )
    return mfu * peak_tflops * 1e12
