"""`merge` by slerp, TIES or DARE: the tensors are computed by mergekit (github.com/arcee-ai/mergekit), a program of its own.

mergekit chooses its own versions of transformers and others, so it is not imported but run: `mergekit-yaml` from the PATH, as a
rule from an environment that holds nothing else. Everything around it is merge.py's: folders are compared before it starts,
its tensors are checked after it ended, and configuration, tokenizer, manifest and card are written as for a linear merge.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from conversion import ConversionError
from conversion.merge_recipe import MergekitRecipe, inputs
from conversion.safetensors_files import SafetensorsReader
from conversion.weights import check_tensors, is_finite
from smol_console import shown

PROGRAM = "mergekit-yaml"


def find_program(recipe: MergekitRecipe) -> Path:
    """mergekit's program; raises ConversionError where it is not installed."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise ConversionError(
            f"method: {recipe.method} is computed by mergekit, and there is no {PROGRAM} on the PATH; install it (python3 -m "
            "venv mergekit && mergekit/bin/pip install torch==2.13.0 mergekit==0.1.5) and put mergekit/bin at the end of PATH"
        )
    return Path(found)


def configuration(recipe: MergekitRecipe, dtype: torch.dtype) -> dict[str, Any]:
    """What mergekit reads: arithmetic in fp32, rounded once to `dtype`, as in our own linear merge."""
    base, *tuned = inputs(recipe)
    of_all: dict[str, Any] = {"parameters": {"t": recipe.t}} if recipe.method == "slerp" else {}
    models = [{"model": _reference(one.folder), "parameters": one.parameters} for one in tuned]
    return {
        "merge_method": recipe.method,
        "base_model": _reference(base.folder),
        "models": [{"model": _reference(base.folder)}, *models] if recipe.method == "slerp" else models,
        **of_all,
        "dtype": "float32",
        "out_dtype": str(dtype).removeprefix("torch."),
    }


def _reference(folder: Path) -> dict[str, Any]:
    """Spelled out, since in a mere text mergekit takes + and @ for the marks of adapters and revisions."""
    return {"model": {"path": str(folder.resolve())}}


def write_weights(program: Path, recipe: MergekitRecipe, first: SafetensorsReader, target: Path) -> None:
    """Have mergekit write the merged weight files into `target`; its progress and complaints go to the terminal.

    Raises ConversionError when it fails, or when a tensor is not as in the folder of `first`, or is NaN or Inf.
    """
    scratch = target / "mergekit"
    scratch.mkdir()
    config, out = scratch / "merge.yaml", scratch / "out"
    config.write_text(json.dumps(configuration(recipe, first.dtype), indent=2), encoding="utf8")  # JSON is YAML
    options = ["--random-seed", str(recipe.seed), "--no-copy-tokenizer", "--no-write-model-card"]
    done = subprocess.run(
        [program, config, out, *options], env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise ConversionError(f"{program} ended with exit code {done.returncode}; it says why above: mend that and merge again")
    _check(SafetensorsReader(out), first)
    for path in (*out.glob("*.safetensors"), *out.glob("*.safetensors.index.json")):
        path.rename(target / path.name)
    shutil.rmtree(scratch)


def _check(merged: SafetensorsReader, first: SafetensorsReader) -> None:
    check_tensors(merged.shapes, first.shapes, "what mergekit wrote")
    if merged.dtype != first.dtype:
        raise ConversionError(f"mergekit wrote {merged.dtype} where {first.dtype} was asked for; use another version of it")
    for name in shown(list(merged.shapes), "checking tensors", "tensors"):
        if not is_finite(merged.read(name)):
            raise ConversionError(f"{name} holds NaN or Inf after the merge; look for it in the models, or use smaller weights")


def version(program: Path) -> str | None:
    """mergekit's version, asked of the Python beside the program; None where that does not tell."""
    python = program.resolve().parent / "python"
    ask = "import importlib.metadata as m; print(m.version('mergekit'))"
    try:
        return subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
