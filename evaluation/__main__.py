"""Entry of `python -m evaluation`: the held-out loss of a Hugging Face folder, as one JSON file.

    python -m evaluation held-out HF_DIR --config C.yaml --output FILE

Windows and targets are the trainer's (held_out.py), and so is the name, eval/loss/NAME: TensorBoard draws both into one
chart. On a GPU where there is one. Exit code 2 and one sentence for bad input; FILE is then not written.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from smol_config import UserError, load_mapping, parse
from smol_console import add_command
from smol_data.config import DataConfig

WINDOWS = 256
"""Of each held-out set, where the configuration has no evaluation.windows: the trainer's default."""


def held_out(hf_dir: Path, config: Path, output: Path) -> None:
    """Write {"model": HF_DIR, "results": {"eval/loss/NAME": loss in nats}} for every set of data.held_out.

    Raises UserError for a folder that is no model, a configuration without held-out sets, and one that does not open.
    """
    mapping = load_mapping(config)
    data = parse(DataConfig, mapping.get("data", {}), source=str(config), at="data")
    if not data.held_out:
        raise UserError(f"{config}: data.held_out names no dataset; add one to evaluate on")
    if not (hf_dir / "config.json").is_file():
        raise UserError(f"{hf_dir} has no config.json; give a Hugging Face folder, as to-hf makes them")
    import torch
    from transformers import AutoModelForCausalLM

    from evaluation.held_out import held_out_loss

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype="auto").eval().to(device)
    windows = (mapping.get("evaluation") or {}).get("windows", WINDOWS)
    results = {}
    for name, folder in data.held_out.items():
        loss, targets = held_out_loss(model, folder, data.sequence_length, windows)
        results[f"eval/loss/{name}"] = loss
        print(f"{name}: {loss:.5f} nats over {targets:,} targets", flush=True)
    output.write_text(json.dumps({"model": str(hf_dir), "results": results}, indent=1) + "\n", encoding="utf8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = add_command(
        commands,
        "held-out",
        "Loss on data.held_out, over the windows and targets that the trainer evaluates.",
        "python -m evaluation held-out runs/smollm3/hf/step_40000 --config configs/smollm3/pretrain.yaml --output loss.json",
    )
    command.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="a Hugging Face folder")
    command.add_argument("--config", metavar="C", type=Path, required=True, help="the run's configuration")
    command.add_argument("--output", metavar="FILE", type=Path, required=True, help="JSON with the losses")
    options = parser.parse_args(arguments)
    try:
        held_out(options.hf_dir, options.config, options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
