"""The arguments of `python -m conversion`: for each command one function that declares them and one that calls its module.

Those modules import torch, Megatron-Core and transformers, so they are imported when a command runs: --help answers at once.
"""

import argparse
from pathlib import Path
from typing import Any

from smol_console import add_command, byte_size, whole_number

Commands = Any
"""What add_subparsers() returns; argparse does not make its type public."""


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
    for declare in (_add_to_hf, _add_from_hf, _add_verify, _add_merge, _add_push, _add_inspect, _add_export):
        declare(commands)
    return parser


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="an iter_* folder, or a run's folder")


def _add_text(command: argparse.ArgumentParser) -> None:
    command.add_argument("--text", metavar="FILE", type=Path, help="also compare the perplexity on this UTF-8 text")


# --- to-hf -----------------------------------------------------------------------------------------------------------------


def _add_to_hf(commands: Commands) -> None:
    command = add_command(
        commands,
        "to-hf",
        "Export a checkpoint as a folder that transformers loads, after proving that both compute the same.",
        "python -m conversion to-hf runs/smollm3/iter_0001000 runs/smollm3/hf/step_1000 --dtype bf16",
    )
    _add_checkpoint(command)
    command.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="folder to make; HF_DIR.partial until it is verified")
    _add_export_options(command)
    command.add_argument("--overwrite", action="store_true", help="replace HF_DIR, once the new export is verified")
    command.set_defaults(run=_to_hf)


def _add_export_options(command: argparse.ArgumentParser) -> None:
    """What to-hf and export both take."""
    command.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="dtype of the weights (default bf16)")
    command.add_argument(
        "--shard-size", type=byte_size, default="5GB", metavar="SIZE", help="largest weight file, such as 500MB (default 5GB)"
    )
    command.add_argument("--tokenizer", metavar="T", help="tokenizer folder or Hub name (default: the run's data.tokenizer)")
    command.add_argument(
        "--yarn",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="have readers stretch the context to FACTOR times the training length (YaRN; SmolLM3: 2, for 128k from 64k)",
    )
    command.add_argument("--license", metavar="ID", help="license for the card, as the Hub names it, such as apache-2.0")
    _add_text(command)
    _add_allow_nan(command)


def _add_allow_nan(command: argparse.ArgumentParser) -> None:
    command.add_argument("--allow-nan", action="store_true", help="convert weights that hold NaN or Inf all the same")


def _to_hf(options: argparse.Namespace) -> None:
    from conversion import to_hf

    to_hf.run(options.checkpoint, options.hf_dir, to_hf.Options.of(options), overwrite=options.overwrite)


# --- from-hf ---------------------------------------------------------------------------------------------------------------


def _add_from_hf(commands: Commands) -> None:
    command = add_command(
        commands,
        "from-hf",
        "Make a weights-only checkpoint of a SmolLM3, Llama, Qwen2 or Qwen3 folder; start a run from it with start_from.",
        "python -m conversion from-hf SmolLM3-3B-Base runs/from_hub/iter_0000000",
    )
    command.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="folder with config.json and safetensors files")
    command.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="checkpoint folder to make")
    _add_allow_nan(command)
    command.set_defaults(run=_from_hf)


def _from_hf(options: argparse.Namespace) -> None:
    from conversion import from_hf

    from_hf.run(options.hf_dir, options.checkpoint, options.allow_nan)


# --- verify ----------------------------------------------------------------------------------------------------------------


def _add_verify(commands: Commands) -> None:
    command = add_command(
        commands,
        "verify",
        "Compare the weights, logits and perplexity of a checkpoint and a Hugging Face folder.",
        "python -m conversion verify runs/smollm3/iter_0001000 runs/smollm3/hf/step_1000 --text held_out.txt",
    )
    _add_checkpoint(command)
    command.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="folder to compare with")
    command.add_argument("--output", metavar="FILE", type=Path, help="where the figures go (default: HF_DIR/parity.json)")
    _add_text(command)
    command.add_argument(
        "--memory",
        type=byte_size,
        default="8GB",
        metavar="SIZE",
        help="where both models in fp32 take more, a matrix at a time (default 8GB)",
    )
    command.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> None:
    from conversion import verify

    verify.run(options.checkpoint, options.hf_dir, options.text, options.output, options.memory)


# --- merge -----------------------------------------------------------------------------------------------------------------


def _add_merge(commands: Commands) -> None:
    command = add_command(
        commands,
        "merge",
        "Add up the weights of Hugging Face folders of one architecture: a linear merge, or a soup.",
        "python -m conversion merge runs/merged --models runs/apo/hf=0.9 runs/long/hf=0.1",
    )
    command.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="folder to make; OUT_DIR.partial until it is whole")
    recipe = command.add_mutually_exclusive_group(required=True)
    recipe.add_argument("--models", nargs="+", metavar="FOLDER=WEIGHT", help="what to add up; the weights sum to 1")
    recipe.add_argument(
        "--config", metavar="FILE", type=Path, help="a YAML file with models:, which may be averages themselves"
    )
    command.set_defaults(run=_merge)


def _merge(options: argparse.Namespace) -> None:
    from conversion import merge, merge_recipe

    models: list[str] | None = options.models
    merge.run(options.out_dir, merge_recipe.from_arguments(models) if models else merge_recipe.from_file(options.config))


# --- push ------------------------------------------------------------------------------------------------------------------


def _add_push(commands: Commands) -> None:
    command = add_command(
        commands,
        "push",
        "Upload a Hugging Face folder to the Hub, to S3 or to another URL; what is there already is not sent again.",
        "python -m conversion push runs/smollm3/hf/step_40000 my-org/smollm3-checkpoints --revision stage1-step-40000",
    )
    command.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="a whole Hugging Face folder")
    command.add_argument("target", metavar="TARGET", help="namespace/name on the Hub, s3://BUCKET/PREFIX or another URL")
    command.add_argument("--dry-run", action="store_true", help="list what would be sent and what is there, and change nothing")
    hub = command.add_argument_group("on the Hub", "its token comes from HF_TOKEN or from: hf auth login")
    hub.add_argument("--revision", metavar="R", help="branch, made when it is missing (default main)")
    hub.add_argument("--tag", metavar="T", help="tag the commit")
    hub.add_argument("--public", action="store_true", help="make a new repository public, not private")
    hub.add_argument("--message", metavar="M", help="title of the commit (default: Upload and the folder's name)")
    command.set_defaults(run=_push)


def _push(options: argparse.Namespace) -> None:
    from conversion import push

    push.run(options.hf_dir, options.target, push.Options.of(options), options.dry_run)


# --- inspect ---------------------------------------------------------------------------------------------------------------


def _add_inspect(commands: Commands) -> None:
    command = add_command(
        commands,
        "inspect",
        "Show what is in a checkpoint or a Hugging Face folder, or how two of them differ.",
        "python -m conversion inspect runs/smollm3/iter_0001000 runs/smollm3/iter_0002000",
    )
    command.add_argument("path", metavar="PATH", type=Path, help="a checkpoint, a run's folder or a Hugging Face folder")
    command.add_argument("other", metavar="PATH", type=Path, nargs="?", help="a second one, to compare with")
    command.add_argument("--tensors", action="store_true", help="a row for each tensor, not for each kind over the layers")
    command.add_argument("--shapes-only", action="store_true", help="do not read the weights: names, shapes and dtypes")
    command.add_argument("--json", metavar="FILE", type=Path, help="also write everything there as JSON; - instead of the text")
    command.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> None:
    from conversion import inspect_weights

    inspect_weights.run(options.path, options.other, options.tensors, options.shapes_only, options.json)


# --- export ----------------------------------------------------------------------------------------------------------------


def _add_export(commands: Commands) -> None:
    command = add_command(
        commands,
        "export",
        "Export every checkpoint of a run to RUN/hf/step_N, once, while it trains; with --push, each to a branch of its own.",
        "python -m conversion export --watch runs/smollm3 --push my-org/smollm3-checkpoints",
    )
    command.add_argument("--watch", metavar="RUN", type=Path, required=True, help="the run's folder; it may not be there yet")
    command.add_argument("--push", metavar="REPO", help="namespace/name on the Hub, or a URL such as s3://bucket/prefix")
    command.add_argument("--every", type=_positive, default=60.0, metavar="SECONDS", help="between two looks (default 60)")
    command.add_argument("--once", action="store_true", help="end after the checkpoints that are there now")
    command.add_argument("--retry-failed", action="store_true", help="try again what failed, once")
    command.add_argument("--threads", type=whole_number(1), default=1, metavar="N", help="for arithmetic (default 1)")
    _add_export_options(command)
    command.set_defaults(run=_export)


def _positive(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return number


def _export(options: argparse.Namespace) -> None:
    from conversion import export

    export.run(options)
