"""The quickstart's last step: what was trained, held-out loss on both sides of the conversion, and a sample.

    python -m evaluation.quickstart_report --config configs/quickstart.yaml --hf runs/quickstart/hf

Reads the run's metrics.jsonl and the exported folder, the latter with plain transformers. Exits 1 when the two sides'
held-out losses differ by 0.001 or more: an export that only looks right does not pass.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smol_config import UserError, load_mapping
from smol_console import exit_code

PROMPT = "class Parser:\n    def __init__(self"
LAST_STEPS = 20
"""A step's batch holds a few windows, so single losses jump with what is in them."""
TOLERANCE = 1e-3
"""Nats. bf16 kernels of two implementations round differently; over thousands of targets that averages out."""


def read_run(run: Path, names: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(all lines, newest line with held-out losses) of a run's metrics."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path} is missing; train the run first (bash quickstart.sh does)")
    lines = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]
    evaluated = [line for line in lines if all(f"eval/loss/{name}" in line for name in names)]
    if not evaluated:
        raise UserError(f"{path} holds no held-out losses of {', '.join(names)}; let the run finish")
    return lines, evaluated[-1]


def report(config_path: Path, hf: Path) -> bool:
    """Print the report; returns whether both sides agree."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evaluation.held_out import held_out_loss

    config = load_mapping(config_path)
    data, run = config["data"], Path(config["train"]["output_dir"])
    lines, last = read_run(run, list(data["held_out"]))
    model = AutoModelForCausalLM.from_pretrained(hf, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(hf)

    vocabulary = config["model"]["vocab_size"]
    untrained = math.log(vocabulary)
    parameters = sum(p.numel() for p in model.parameters())
    end = sum(line["train/loss"] for line in lines[-LAST_STEPS:]) / len(lines[-LAST_STEPS:])
    losses = f"{lines[0]['train/loss']:.3f} -> {end:.3f} (mean of the last {LAST_STEPS} steps)"
    print(f"model           {parameters:,} parameters, {type(model).__name__}, vocabulary {vocabulary:,}")
    print(f"trained         {last['tokens']:,} tokens in {last['step']:,} steps")
    print(f"training loss   {losses}, {end / untrained:.1%} of ln(vocabulary) = {untrained:.3f}")
    print("held-out loss   dataset   Megatron-Core   transformers   difference")
    agree = True
    for name, folder in data["held_out"].items():
        theirs, targets = held_out_loss(model, folder, data["sequence_length"], config["evaluation"]["windows"])
        ours = last[f"eval/loss/{name}"]
        agree &= abs(ours - theirs) < TOLERANCE
        print(f"                {name:<9} {ours:<15.5f} {theirs:<14.5f} {abs(ours - theirs):.1e}   ({targets:,} targets)")
    print(f"                {'agree to' if agree else 'FAILED: must agree to'} {TOLERANCE} nats")
    inputs = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
    sample = model.generate(
        **inputs, max_new_tokens=96, do_sample=False, repetition_penalty=1.1, pad_token_id=tokenizer.pad_token_id
    )
    print("sample          greedy, repetition penalty 1.1; the first line and a half are the prompt:\n")
    text = str(tokenizer.decode(sample[0], skip_special_tokens=True))
    print("    " + text.replace("\n", "\n    "))
    print(f"\nlook at         {run.parent}/loss.png, {hf}/README.md, {hf}/parity.json; tensorboard --logdir {run}/tensorboard")
    return agree


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.quickstart_report", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--config", type=Path, required=True, help="the run's configuration")
    parser.add_argument("--hf", type=Path, required=True, help="the exported Hugging Face folder")
    options = parser.parse_args(arguments)
    return exit_code(lambda: 0 if report(options.config, options.hf) else 1)


if __name__ == "__main__":
    sys.exit(main())
