"""The folder of the run that a configuration describes, for the scripts; what they need to know before a job is submitted.

    python -m slurm.run_folder CONFIG [--ranks N] [--write FILE] [section.key=value ...]

Prints train.output_dir as an absolute path. The configuration is checked on the way; with --ranks, its layout and batch against
so many ranks too. --write leaves one file that holds the configuration with its bases and overrides, and beside it `differs`:
what it sets otherwise than its bases; ${NAME}s stay as written, so that no secret lands there. Exit code 2 and one sentence for
a fault. Neither torch nor Megatron-Core is imported.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from smol_config import differences, load, mapping_to_yaml, merge_files
from smol_console import exit_code
from smol_train.config import RunConfig
from smol_train.plan import plan


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.run_folder", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--ranks", type=int, metavar="N", help="processes that will train")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the configuration there, in one file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    config = load(RunConfig, options.config, options.overrides)
    if options.ranks:
        plan(config, gpus=options.ranks)
    if options.write:
        options.write.write_text(mapping_to_yaml(merge_files(options.config, options.overrides)), encoding="utf8")
        differs = "".join(f"{one}\n" for one in differences(options.config, options.overrides))
        options.write.with_name("differs").write_text(differs, encoding="utf8")
    print(Path(config.train.output_dir).absolute())


if __name__ == "__main__":
    sys.exit(main())
