"""Entry of `python -m data_tools`: one subcommand per module, the same exit codes for all.

Each module listed here has `add_parser(subparsers)`, which sets `run`: the function that takes the parsed arguments. The
modules import datatrove, tokenizers and the like inside their functions, so that --help answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from data_tools import (
    adopt,
    corpus,
    decontaminate,
    fertility,
    inspect_samples,
    megatron_index,
    mixture,
    prepare,
    shuffle,
    stats,
    tokenize_text,
    train_tokenizer,
    verify,
)
from smol_console import exit_code

COMMANDS = (  # in the order in which a dataset is made and looked at
    corpus,
    train_tokenizer,
    fertility,
    decontaminate,
    tokenize_text,
    prepare,
    verify,
    megatron_index,
    adopt,
    shuffle,
    stats,
    mixture,
    inspect_samples,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="python -m data_tools",
        description="Text to token datasets: gather text, train a tokenizer, write token shards with their manifest.",
        epilog="example: python -m data_tools corpus runs/corpus && python -m data_tools COMMAND --help",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input (one sentence on stderr), 130 interrupted, 141 cut off."""
    options = build_parser().parse_args(arguments)
    try:
        code = exit_code(lambda: options.run(options))
        sys.stdout.flush()
    except BrokenPipeError:  # what reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed at exit
        return 141
    except KeyboardInterrupt as stop:
        print(f"interrupted; {stop or 'nothing was written'}", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":  # worker processes import this module again and must not start the command again
    sys.exit(main())
