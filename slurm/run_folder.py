"""The folder of the run that a configuration describes, for the scripts; what they need to know before a job is submitted.

    python -m slurm.run_folder CONFIG [--ranks N] [--recipe NAME] [--write FILE] [section.key=value ...]

Prints train.output_dir as an absolute path. The configuration is checked on the way; with --ranks, its layout and batch
against so many ranks too; with --recipe it is the configuration of a recipe of post-training. --write leaves one file that
holds the configuration with its bases and overrides, and beside it `differs`: what it sets otherwise than its bases; ${NAME}s
stay as written, so that no secret lands there. Exit code 2 and one sentence for a fault. Neither torch nor Megatron-Core is
imported.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from post_training.recipes.config import RECIPES
from post_training.recipes.ranks import accumulation
from smol_config import UserError, differences, load, mapping_to_yaml, merge_files, nearest
from smol_console import exit_code
from smol_train.config import RunConfig
from smol_train.plan import plan


def _checked(options: argparse.Namespace) -> str:
    """train.output_dir of a configuration that its command will take; raises UserError for another."""
    if options.recipe is None:
        run = load(RunConfig, options.config, options.overrides)
        if options.ranks:
            plan(run, gpus=options.ranks)
        return run.train.output_dir
    if options.recipe not in RECIPES:
        raise UserError(
            f"recipe {options.recipe!r} is unknown; {nearest(options.recipe, list(RECIPES))}; it stands behind --, as in "
            "submit.sh post_training C.yaml -- sft"
        )
    recipe = load(RECIPES[options.recipe], options.config, options.overrides)
    if options.ranks:
        accumulation(recipe, options.ranks)
    return recipe.train.output_dir


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.run_folder", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--ranks", type=int, metavar="N", help="processes that will train")
    parser.add_argument("--recipe", metavar="NAME", help="of post-training, whose configuration it is")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the configuration there, in one file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    output_dir = _checked(options)
    if options.write:
        options.write.write_text(mapping_to_yaml(merge_files(options.config, options.overrides)), encoding="utf8")
        differs = "".join(f"{one}\n" for one in differences(options.config, options.overrides))
        options.write.with_name("differs").write_text(differs, encoding="utf8")
    print(Path(output_dir).absolute())


if __name__ == "__main__":
    sys.exit(main())
