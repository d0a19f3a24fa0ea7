"""Entry of `python -m conversion`: parse, run one command, turn a user's mistake into one sentence and an exit code.

Exit codes: 0 done, 1 the two sides are not equal, 2 bad input (nothing changed). Commands import torch, Megatron-Core and
transformers only when they run, so --help answers at once.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from conversion import ParityError
from smol_config import UserError


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="python -m conversion",
        description="Megatron-Core checkpoint <-> Hugging Face folder, verified. Runs on the CPU in one process.",
        epilog="A CHECKPOINT is an iter_* folder, or a run's folder: its newest whole checkpoint.\n"
        "example: python -m conversion to-hf runs/smollm3 runs/smollm3/hf/step_1000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], summary: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example: python -m conversion {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    command = add(
        "to-hf",
        _to_hf,
        "Export a checkpoint as a folder that transformers loads, after proving that both compute the same.",
        "to-hf runs/smollm3/iter_0001000 runs/smollm3/hf/step_1000 --dtype bf16",
    )
    _add_checkpoint(command)
    command.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="folder to make; HF_DIR.partial until it is verified")
    command.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="dtype of the weights (default bf16)")
    command.add_argument("--shard-size", default="5GB", metavar="SIZE", help="largest weight file, such as 500MB (default 5GB)")
    command.add_argument("--tokenizer", metavar="T", help="tokenizer folder or Hub name (default: the run's data.tokenizer)")
    command.add_argument("--overwrite", action="store_true", help="replace HF_DIR, once the new export is verified")
    command.add_argument(
        "--yarn",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="have readers stretch the context to FACTOR times the training length (YaRN; SmolLM3: 2, for 128k from 64k)",
    )
    _add_text(command)

    command = add(
        "from-hf",
        _from_hf,
        "Make a weights-only checkpoint of a SmolLM3, Llama, Qwen2 or Qwen3 folder; start a run from it with start_from.",
        "from-hf SmolLM3-3B-Base runs/from_hub/iter_0000000",
    )
    command.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="folder with config.json and safetensors files")
    command.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="checkpoint folder to make")

    command = add(
        "verify",
        _verify,
        "Compare the weights, logits and perplexity of a checkpoint and a Hugging Face folder.",
        "verify runs/smollm3/iter_0001000 runs/smollm3/hf/step_1000 --text held_out.txt",
    )
    _add_checkpoint(command)
    command.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="folder to compare with")
    command.add_argument("--output", metavar="FILE", type=Path, help="where the figures go (default: HF_DIR/parity.json)")
    _add_text(command)

    command = add(
        "merge",
        _merge,
        "Add up the weights of Hugging Face folders of one architecture: a linear merge, or a soup.",
        "merge runs/merged --models runs/apo/hf=0.9 runs/long/hf=0.1",
    )
    command.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="folder to make; OUT_DIR.partial until it is whole")
    recipe = command.add_mutually_exclusive_group(required=True)
    recipe.add_argument("--models", nargs="+", metavar="FOLDER=WEIGHT", help="what to add up; the weights sum to 1")
    recipe.add_argument(
        "--config", metavar="FILE", type=Path, help="a YAML file with models:, which may be averages themselves"
    )
    return parser


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="an iter_* folder, or a run's folder")


def _add_text(command: argparse.ArgumentParser) -> None:
    command.add_argument("--text", metavar="FILE", type=Path, help="also compare the perplexity on this UTF-8 text")


def _to_hf(options: argparse.Namespace) -> None:
    from conversion import to_hf

    names = ("dtype", "shard_size", "tokenizer", "text", "overwrite", "yarn")
    to_hf.run(options.checkpoint, options.hf_dir, to_hf.Options(**{name: getattr(options, name) for name in names}))


def _from_hf(options: argparse.Namespace) -> None:
    from conversion import from_hf

    from_hf.run(options.hf_dir, options.checkpoint)


def _verify(options: argparse.Namespace) -> None:
    from conversion import verify

    verify.run(options.checkpoint, options.hf_dir, options.text, options.output)


def _merge(options: argparse.Namespace) -> None:
    from conversion import merge, merge_recipe

    models: list[str] | None = options.models
    merge.run(options.out_dir, merge_recipe.from_arguments(models) if models else merge_recipe.from_file(options.config))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except ParityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _alone_on_the_cpu() -> None:
    """Make this process a world of one without GPUs, also inside a job: parity in fp32 is then the same everywhere, and no
    memory of a training GPU is taken. What the libraries then say about missing GPU packages is not for the user."""
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(megatron\.core|torch\.distributed\.checkpoint)\.")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


if __name__ == "__main__":  # saving a checkpoint spawns a process that imports this module again
    _alone_on_the_cpu()
    sys.exit(main())
