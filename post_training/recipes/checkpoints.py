"""A run's checkpoints and models on disk: when one is whole, where a run goes on, what goes, what is exported and pushed.

    RUN/checkpoint-1000      transformers is writing it, or was killed while it did
    RUN/iter_0001000         whole: renamed when COMPLETE, which lists the files with their sizes, was in it
    RUN/hf/step_1000         the model alone, in the precision of the one that the run started from, adapters merged

Names and marker are pre-training's (smol_train/checkpoint_folder.py), so slurm/ and evaluation see both in the same way.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

import smol_progress
from data_tools.output import whole_folder
from post_training.recipes.config import RecipeConfig
from post_training.recipes.model_card import model_card
from smol_config import to_yaml
from smol_files import write_whole

MARKER, STATE = "COMPLETE", "state.json"


def whole_checkpoints(run: Path) -> list[Path]:
    """The complete ones, oldest first: all files that the marker lists are there with their sizes."""
    found = [path for path in run.glob("iter_*") if re.fullmatch(r"iter_\d{7,}", path.name) and _is_whole(path)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in the folder's name."""
    return int(checkpoint.name.removeprefix("iter_"))


def tokens_of(checkpoint: Path) -> int:
    """Tokens trained on up to there."""
    return int(json.loads((checkpoint / STATE).read_text(encoding="utf8"))["tokens"])


def _is_whole(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / MARKER).read_text(encoding="utf8"))["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, LookupError):
        return False


def finish(made: Path, config: RecipeConfig, step: int, tokens: int) -> Path:
    """Give a checkpoint that all ranks have written its state, its marker and its name."""
    (made / "run.yaml").write_text(to_yaml(config), encoding="utf8")
    (made / STATE).write_text(json.dumps({"step": step, "tokens": tokens}) + "\n", encoding="utf8")
    sizes = {str(path.relative_to(made)): path.stat().st_size for path in sorted(made.rglob("*")) if path.is_file()}
    write_whole(made / MARKER, json.dumps({"files": sizes}, indent=1) + "\n")
    checkpoint = made.with_name(f"iter_{step:07d}")
    shutil.rmtree(checkpoint, ignore_errors=True)  # a damaged one, from before which the run has started again
    return made.rename(checkpoint)


def remove_old(run: Path, keep_last: int) -> None:
    """Leave the newest whole ones. Each loses its name first, so that none is left half removed that looks whole."""
    for checkpoint in whole_checkpoints(run)[:-keep_last]:
        shutil.rmtree(checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.partial")))


def remove_unfinished(run: Path) -> None:
    """Saves and removals that were killed. Called before training."""
    for path in [*run.glob("checkpoint-*"), *run.glob("iter_*.partial")]:
        shutil.rmtree(path, ignore_errors=True)


# --- models ------------------------------------------------------------------------------------------------------------------


def export(checkpoint: Path, start: str, tokenizer: Any, card: Callable[[str], str], folder: Path) -> None:
    """The model of a checkpoint as a Hugging Face folder; `start` is the model that the run began with, `card` makes README.md
    for a model type."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = AutoConfig.from_pretrained(start, local_files_only=True).dtype
    if (checkpoint / "adapter_config.json").is_file():
        from peft import PeftModel
        from transformers.trainer_utils import align_special_tokens

        base = AutoModelForCausalLM.from_pretrained(start, local_files_only=True, dtype="float32")
        model = PeftModel.from_pretrained(base, str(checkpoint)).merge_and_unload().to(kind)
        align_special_tokens(model, tokenizer)  # as the trainer does with a model that it saves whole: where an answer ends
    else:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, local_files_only=True, dtype=kind)
    shutil.rmtree(folder, ignore_errors=True)  # of a lost attempt at the same step
    with whole_folder(folder) as working:
        model.save_pretrained(working)
        tokenizer.save_pretrained(working)
        smol_progress.write(working, smol_progress.progress_of(checkpoint))
        (working / "README.md").write_text(card(model.config.model_type), encoding="utf8")


class Pusher:
    """Pushes models one after another beside the training, each by `python -m conversion push`."""

    def __init__(self, target: str | None) -> None:
        self.target = target
        self._running: list[tuple[list[str], subprocess.Popen[bytes]]] = []

    def push(self, folder: Path) -> None:
        """Begin to push; does nothing where the configuration names no target."""
        if self.target is None:
            return
        step = folder.name
        to = [f"{self.target}/{step}"] if "://" in self.target else [self.target, "--revision", step.replace("_", "-")]
        command = [sys.executable, "-m", "conversion", "push", str(folder), *to]
        self._running.append((command, subprocess.Popen(command)))

    def wait(self) -> None:
        """For all; those that failed are told, with the command to give again. The models are on disk in any case."""
        for command, process in self._running:
            if process.wait():
                print(f"not pushed; give this again: {' '.join(['python', *command[1:]])}", file=sys.stderr)
        self._running = []


# --- while it trains ---------------------------------------------------------------------------------------------------------


class Checkpoints(TrainerCallback):
    """Finishes what the trainer saved, on the main rank; the others wait for it at the next step's first collective."""

    def __init__(self, config: RecipeConfig, trainer: Any, manifest: Mapping[str, Any]) -> None:
        """`manifest`: of the data, for the models' cards."""
        self.config, self.trainer, self.manifest = config, trainer, manifest
        self.run = Path(config.train.output_dir)
        self.pusher = Pusher(config.checkpoint.push)
        self.interrupted = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()  # every rank has written its part
        self.interrupted = control.should_training_stop and state.global_step < state.max_steps
        if not state.is_world_process_zero:
            return
        step = state.global_step
        checkpoint = finish(self.run / f"checkpoint-{step}", self.config, step, self.trainer._total_train_tokens)
        remove_old(self.run, self.config.checkpoint.keep_last)
        if not self.interrupted:  # else there is little time
            self._export(checkpoint)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.interrupted:
            self.complete()

    def complete(self) -> None:
        """Make the last model, where a kill came between its checkpoint and it; wait for all pushes."""
        if not self.trainer.is_world_process_zero():
            return
        newest = whole_checkpoints(self.run)[-1]
        if not self.model_of(newest).is_dir():
            self._export(newest)
        self.pusher.wait()

    def model_of(self, checkpoint: Path) -> Path:
        """Folder of the checkpoint's model."""
        return self.run / "hf" / f"step_{step_of(checkpoint)}"

    def _export(self, checkpoint: Path) -> None:
        folder = self.model_of(checkpoint)
        card = partial(model_card, self.config, self.manifest, step_of(checkpoint), tokens_of(checkpoint))
        export(checkpoint, self.config.model, self.trainer.processing_class, card, folder)
        self.pusher.push(folder)
