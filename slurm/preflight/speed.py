"""All GPUs of a node at work at once: bf16 matrix products and copies in memory, and what the driver says meanwhile.

At once, because that is how they train: power and cooling of a node are shared. torch is imported here, once a node.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slurm.preflight.findings import Absent, Fault, Finding, Node, judged
from slurm.preflight.gpus import GpuReading, read_gpus

if TYPE_CHECKING:
    import torch

BATCH = 10
"""Products or copies between two looks at the clock."""


@dataclass(frozen=True)
class Load:
    """What the GPUs do and tell; lists are in the order of their numbers."""

    readings: list[GpuReading] | None = None
    """Under load, where there was one; None without nvidia-smi, or where it gave no answer."""
    silence: str = ""
    """Why it gave none."""
    tflops: list[float] = field(default_factory=list)
    copy_rates: list[float] = field(default_factory=list)
    """GB/s."""
    trouble: str = ""
    """Why nothing was multiplied or copied."""


def measure(node: Node) -> Load:
    """Put the node's GPUs to work, and ask the driver while they are."""
    limits = node.limits.gpu
    devices, trouble = _devices(node)
    if not devices:
        return Load(*_ask_driver(), trouble=trouble)
    readings, silence = None, ""
    try:
        with ThreadPoolExecutor(len(devices)) as threads:
            products = [threads.submit(gemm_rate, device, limits.gemm_size, limits.gemm_seconds) for device in devices]
            time.sleep(0.7 * limits.gemm_seconds)  # by then they are warm
            readings, silence = _ask_driver()
            tflops = [product.result() / 1e12 for product in products]
            copies = list(threads.map(lambda device: copy_rate(device, limits.copy_megabytes * 10**6) / 1e9, devices))
    except RuntimeError as error:  # of CUDA
        return Load(readings, silence, trouble=f"a GPU failed ({str(error).splitlines()[0]}); reset it, or restart the node")
    return Load(readings, silence, tflops, copies)


def _devices(node: Node) -> tuple[list["torch.device"], str]:
    """Devices to put to work, or why there are none."""
    import torch

    if node.device == "cpu":
        return [torch.device("cpu")], ""
    if not torch.cuda.is_available():
        return [], f"torch {torch.__version__} can use no GPU here; look at `python pretrain_smol.py --check-environment`"
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())], ""


def _ask_driver() -> tuple[list[GpuReading] | None, str]:
    """Readings, or why there are none; neither without nvidia-smi."""
    try:
        return read_gpus(), ""
    except Absent:
        return None, ""
    except Fault as error:
        return None, str(error)


def gemm_rate(device: "torch.device", size: int, seconds: float) -> float:
    """FLOP/s of bf16 products of two square matrices, for about so many seconds."""
    import torch

    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    done, elapsed = _repeat(lambda: torch.mm(left, right), device, seconds)
    return 2.0 * size**3 * done / elapsed


def copy_rate(device: "torch.device", size: int, seconds: float = 1.0) -> float:
    """Bytes per second, read and written, of copies of `size` bytes inside the device's memory."""
    import torch

    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    done, elapsed = _repeat(lambda: target.copy_(source), device, seconds)
    return 2.0 * size * done / elapsed


def _repeat(work: Callable[[], object], device: "torch.device", seconds: float) -> tuple[int, float]:
    """How often `work` was done in about so many seconds, after a first time that does not count, and in how many exactly."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    wait()
    done, started = 0, time.perf_counter()
    while not done or time.perf_counter() - started < seconds:
        for _ in range(BATCH):
            work()
        wait()
        done += BATCH
    return done, time.perf_counter() - started


# --- checks ----------------------------------------------------------------------------------------------------------------


def check_gemm(node: Node) -> Finding:
    rates = _measured(node, node.load.tflops)
    slowest = min(range(len(rates)), key=lambda number: rates[number])
    sentence = f"GPU {slowest} multiplies at {rates[slowest]:.3g} TFLOP/s, the fastest of the node at {max(rates):.3g}"
    return judged(rates[slowest], f"TFLOP/s (GPU {slowest})", least=node.limits.gpu.gemm_tflops, fault=sentence)


def check_memory_bandwidth(node: Node) -> Finding:
    rates = _measured(node, node.load.copy_rates)
    slowest = min(range(len(rates)), key=lambda number: rates[number])
    sentence = f"memory of GPU {slowest} moves {rates[slowest]:.4g} GB/s, of the fastest of the node {max(rates):.4g}"
    return judged(rates[slowest], f"GB/s (GPU {slowest})", node.limits.gpu.memory_gigabytes_per_second, fault=sentence)


def _measured(node: Node, rates: list[float]) -> list[float]:
    if not rates:
        raise Fault(node.load.trouble)
    if node.device == "cuda" and len(rates) < node.gpus:
        raise Fault(f"torch sees {len(rates)} of {node.gpus} GPUs; look at CUDA_VISIBLE_DEVICES and at dmesg")
    return rates
