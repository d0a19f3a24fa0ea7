"""`mid`, `sft`, `preference`, `grpo`: a run from its configuration to its exit code. The last of the recipes' files to read.

    configuration -> processes -> data -> trainer -> newest whole checkpoint -> train -> exit code

Given again, a command goes on from its newest whole checkpoint: the same bits as without the interruption (test_resume).
"""

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

from post_training.recipes.config import RECIPES, GrpoConfig, RecipeConfig
from post_training.recipes.exit_codes import DONE, REFUSED
from smol_config import load, to_yaml
from smol_console import add_command

_SUMMARIES = {
    "mid": "Mid-training: go on with the base model on reasoning, all tokens trained.",
    "sft": "Supervised fine-tuning on the assistant's turns.",
    "preference": "Preference optimisation on pairs: apo_zero, dpo, kto or orpo.",
    "grpo": "Reinforcement learning: sampled answers to prompts, judged by rewards that code computes.",
}


def add_parsers(subparsers: Any) -> None:
    """Add the recipes to the command line."""
    for name, summary in _SUMMARIES.items():
        example = f"python -m post_training {name} --config configs/post_training/tiny/{name}.yaml optim.learning_rate=1e-4"
        parser = add_command(subparsers, name, f"{summary} Given again, it goes on.", example)
        parser.add_argument("--config", type=Path, required=True, metavar="C.yaml", help="the run's configuration")
        parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and the plan, and stop")
        parser.add_argument("--json", action="store_true", help="with --dry-run: one JSON object")
        parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
        parser.set_defaults(run=_run, refused=REFUSED)


def _run(options: argparse.Namespace) -> int:
    config = load(RECIPES[options.command], options.config, options.overrides)
    if not options.dry_run:
        return train(config)
    from post_training.recipes.plan import plan, text

    found = plan(options.command, config)
    print(json.dumps(found) if options.json else text(found, config))
    return DONE


def train(config: RecipeConfig) -> int:
    """Run a recipe on this rank; returns the exit code, 0 or 85 or 93. Raises UserError for what cannot be trained."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL reports each run else
    from post_training.recipes.ranks import adopt_slurm, prepare_once, run_lock

    adopt_slurm()
    from accelerate import PartialState
    from transformers.utils.logging import disable_progress_bar

    from post_training.recipes.arguments import training_arguments
    from post_training.recipes.callbacks import Signals

    disable_progress_bar()  # of each model that is loaded or saved
    warnings.filterwarnings("ignore", r".*gradient_checkpointing.* is deprecated", FutureWarning)  # by TRL, of transformers
    arguments = training_arguments(config)
    try:
        with run_lock(Path(config.train.output_dir)), Signals(Path(config.train.output_dir)) as signals:
            return _fit(config, arguments, prepare_once(config), signals)
    finally:
        PartialState().destroy_process_group()


def _fit(config: RecipeConfig, arguments: Any, prepared: Any, signals: Any) -> int:
    from transformers import PrinterCallback

    from post_training.recipes.callbacks import Course, ShowProgress, Soundness
    from post_training.recipes.checkpoints import Checkpoints, remove_unfinished, step_of, tokens_of, whole_checkpoints
    from post_training.recipes.grpo import RewardWatch
    from post_training.recipes.metrics import Metrics
    from post_training.recipes.trainers import make_trainer

    run = Path(config.train.output_dir)
    trainer = make_trainer(config, arguments, prepared)
    newest = next(reversed(whole_checkpoints(run)), None)
    if newest:
        trainer._total_train_tokens = tokens_of(newest)  # TRL would count from 0 again
    if trainer.is_world_process_zero():
        remove_unfinished(run)
        (run / "run.yaml").write_text(to_yaml(config), encoding="utf8")
        begin = f"goes on from step {step_of(newest)}" if newest else f"from {config.model}"
        print(f"{run}: {len(prepared.train):,} rows, {begin}", flush=True)
    trainer.accelerator.wait_for_everyone()
    trainer.remove_callback(PrinterCallback)
    checkpoints = Checkpoints(config, trainer, prepared.manifest)
    course = Course(run, trainer.is_world_process_zero(), signals)
    if newest and step_of(newest) >= _last_step(trainer):
        checkpoints.complete()
        course.tell("done", f"{step_of(newest):,} steps")
        return DONE
    callbacks = [signals, Soundness(), Metrics(run, trainer), checkpoints, ShowProgress(config.train.global_batch_size)]
    if isinstance(config, GrpoConfig):
        callbacks[1:2] = [Soundness(may_rest=True), RewardWatch(config, trainer)]
    for callback in [*callbacks, course]:
        trainer.add_callback(callback)
    with course:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    return signals.code or DONE


def _last_step(trainer: Any) -> int:
    """Of the run. A trainer that is given a checkpoint of it would train one step more."""
    return int(trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1])
