"""train.deterministic: only kernels and reductions that give the same bits each time (docs/determinism.md).

On CPUs over gloo a run repeats itself bit for bit without it. On GPUs some kernels add in the order in which their threads
arrive, and NCCL may choose another algorithm from run to run. What is asked for here is what Megatron-Core's own
`deterministic_mode` asks for; not yet run on a GPU.
"""

import contextlib
import os
from collections.abc import Iterator

import torch

from smol_config import ConfigError

ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NCCL_ALGO": ("Ring", "Tree"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
}
"""Values with which cuBLAS, NCCL and Transformer Engine's attention repeat themselves; the first is set where none is."""


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, if `wanted`, torch refuses operations that have no deterministic form.

    Enter it before CUDA and the process groups start: the libraries read the environment once. Raises ConfigError for a
    variable that is set to something else.
    """
    if not wanted:
        yield
        return
    for name, allowed in ENVIRONMENT.items():
        if os.environ.setdefault(name, allowed[0]) not in allowed:
            raise ConfigError(
                f"train.deterministic=true needs {name}={' or '.join(allowed)}, but the environment has "
                f"{os.environ[name]}; unset it"
            )
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
