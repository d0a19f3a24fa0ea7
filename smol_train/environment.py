"""What is installed here, what this repository uses it for, and what does not fit together.

    python pretrain_smol.py --check-environment      exit 0: training can run here (on the CPU if need be); 93: it cannot

`look` gathers Findings and never raises, whatever is broken; environment_checks.py says what is wrong with them.
"""

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smol_train.environment_checks import PARTS, Fault, Findings, Found, Part, dotted, faults
from smol_train.exit_codes import DONE, REFUSED

ROOT = Path(__file__).resolve().parents[1]


def look() -> Findings:
    """Gather Findings from this machine; a part that breaks is reported in them."""
    pins = read_pins(ROOT / "requirements.txt") | read_pins(ROOT / "requirements-gpu.txt")
    parts = {part.name: _look_at(part) for part in PARTS}
    driver, gpus = _nvidia_smi()
    torch: Any = sys.modules.get("torch") if parts["torch"].works else None
    usable = _attempt(lambda: torch.cuda.device_count() if torch.cuda.is_available() else DONE) or 0
    return Findings(
        python=sys.version_info[:3],
        parts=parts,
        torch_cuda=torch.version.cuda if torch else None,
        usable_gpus=usable,
        nccl=_attempt(lambda: dotted(torch.cuda.nccl.version())),
        driver=driver,
        gpus=gpus or _attempt(lambda: tuple(map(torch.cuda.get_device_name, range(usable)))) or (),
        transformer_engine_cuda=_cuda_major("transformer-engine-cu", ("12", "13")),
        dali_cuda=_cuda_major("nvidia-dali-cuda", ("110", "120", "130")),
        compiler=next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None),
        pins=pins,
        installed={name: version for name in pins if (version := _version(name))},
    )


def read_pins(path: Path) -> dict[str, str]:
    """`name==version` lines of a requirements file; none when there is no such file."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf8").splitlines()
    found = (re.match(r"([\w.-]+)(?:\[[^]]*\])?==([\w.+!-]+)", line.strip()) for line in lines)
    return {match[1]: match[2] for match in found if match}


def _look_at(part: Part) -> Found:
    version = next(filter(None, map(_version, part.distributions or (part.name,))), None)
    if part.module is None:
        return Found(version)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(part.module)
    except ModuleNotFoundError as error:
        # The part itself is absent, or it is there and something below it is not.
        own = error.name is not None and part.module.startswith(error.name)
        return Found() if own and not version else Found(version, _first_line(error))
    except Exception as error:  # a library that does not fit raises OSError, RuntimeError, AttributeError, ...
        return Found(version or "of unknown version", _first_line(error))
    return Found(version or "of unknown version")


def _version(distribution: str) -> str | None:
    return _attempt(lambda: importlib.metadata.version(distribution))


def _cuda_major(prefix: str, suffixes: tuple[str, ...]) -> int | None:
    """Major CUDA version in the name of an installed package such as nvidia-dali-cuda130."""
    return next((int(suffix[:2]) for suffix in suffixes if _version(prefix + suffix)), None)


def _nvidia_smi() -> tuple[str | None, tuple[str, ...]]:
    """Driver version and a line for each GPU, from the tool that comes with the driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    run = _attempt(lambda: subprocess.run(command, capture_output=True, text=True, timeout=30, check=True))
    rows = [[cell.strip() for cell in line.split(",")] for line in run.stdout.splitlines()] if run else []
    rows = [row for row in rows if len(row) == 3]
    return (rows[0][0] if rows else None), tuple(f"{name}, {memory}" for _, name, memory in rows)


def _attempt(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception:  # whatever is broken counts as absent here; the checks say what follows
        return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


# --- the command -------------------------------------------------------------------------------------------------------


def check_environment() -> int:
    """Print what is here and what does not fit; 0 when training can run, else 93."""
    found = look()
    print(report(found))
    return REFUSED if any(fault.stops for fault in faults(found)) else DONE


def report(found: Findings) -> str:
    """The table of parts, then the faults, then the verdict."""
    rows = [("Python", dotted(found.python), "")]
    rows += [(part.name, _state(found.part(part.name)), part.purpose) for part in PARTS]
    rows += [
        ("CUDA of torch", found.torch_cuda or "none: a CPU build", "GPUs"),
        ("NCCL", found.nccl or "none", "traffic between GPUs; gloo between CPUs"),
        ("NVIDIA driver", found.driver or "none", "GPUs"),
        *((f"GPU {index}", gpu, "") for index, gpu in enumerate(found.gpus)),
        ("C++ compiler", found.compiler or "none", "compiled extensions, Triton"),
    ]
    lines = [f"{name:<20}{version:<28}{purpose}".rstrip() for name, version, purpose in rows]
    wrong = faults(found)
    lines += ["", *(f"{'stops training' if fault.stops else 'note'}: {fault.sentence}" for fault in wrong)] if wrong else []
    return "\n".join([*lines, "", _verdict(found, wrong)])


def _state(found: Found) -> str:
    if found.error:
        return "does not import"
    return found.version or "not installed"


def _verdict(found: Findings, wrong: list[Fault]) -> str:
    if any(fault.stops for fault in wrong):
        return "training cannot run here"
    backend = "te" if found.usable_gpus and found.part("transformer-engine").works else "torch"
    where = f"{found.usable_gpus} GPUs" if found.usable_gpus else "the CPU"
    return f"training can run here, on {where} with the {backend} backend"
