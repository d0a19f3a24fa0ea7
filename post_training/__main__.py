"""Entry of `python -m post_training`: run one command, turn a user's mistake into one sentence and exit code 2.

Each module listed here has `add_parser(subparsers)`, which sets `run`: the function that takes the parsed arguments. What they
import, they import when they run: --help answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from post_training import drills, preview
from post_training.recipes import run as recipes
from post_training.synth import run as synth
from smol_console import BAD_INPUT, add_command, exit_code


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="python -m post_training",
        description="From a base model to an assistant that reasons when asked to: recipes over TRL, on Hugging Face folders.",
        epilog="example: python -m post_training chat-model runs/base/hf runs/chat/base",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_chat_model(subparsers)
    preview.add_parser(subparsers)
    drills.add_parser(subparsers)
    recipes.add_parsers(subparsers)
    synth.add_parser(subparsers)
    return parser


def _add_chat_model(subparsers: Any) -> None:
    command = add_command(
        subparsers,
        "chat-model",
        "Make a base model's folder fit for chats: turn and think tokens, chat template, rows of the embedding.",
        "python -m post_training chat-model runs/quickstart/hf runs/chat/base",
    )
    command.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="the base model, a Hugging Face folder")
    command.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="new folder")
    command.add_argument("--template", default="hybrid", help="hybrid, chatml or a Jinja file (default hybrid)")
    command.set_defaults(run=_chat_model)


def _chat_model(options: argparse.Namespace) -> None:
    from post_training import chat_model

    chat_model.run(options.hf_dir, options.out_dir, options.template)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input (one sentence on stderr), 130 interrupted.

    Recipes, which jobs start, have those of everything that trains: 85 start me again, 93 bad input (recipes/exit_codes.py).
    """
    options = build_parser().parse_args(arguments)
    try:
        return exit_code(lambda: options.run(options), refused=getattr(options, "refused", BAD_INPUT))
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":  # worker processes import this module again and must not start the command again
    sys.exit(main())
