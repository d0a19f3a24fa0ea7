"""`run` and `show`: a Hugging Face folder through a suite by lm-eval, mode by mode; what would be asked, without a model.

    suite --tasks.py--> lm-eval's tasks --engine.py--> per question and mode --record.py--> OUT_DIR

One pass of the model takes all tasks of a mode together, as lm-eval's own command does, and scores are those of that command.
OUT_DIR gets its name when it is whole.
"""

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

import smol_progress
from evaluation import judge
from evaluation.client import Server
from evaluation.engine import LocalModel, ask, check_generation, quiet, system_message, template_arguments
from evaluation.record import EMPTY, record_task
from evaluation.server import ServedModel
from evaluation.suite import Mode, Suite, SuiteTask
from evaluation.tasks import Loaded, load_tasks
from smol_config import UserError
from smol_progress import Progress

PACKAGES = ("lm_eval", "transformers", "torch", "datasets", "tokenizers")


def show(hf_dir: Path, suite: Suite, asked: Sequence[SuiteTask], count: int) -> None:
    """Print the first `count` prompts of each task in each mode, as the model of `hf_dir` would get them, and what is scored.

    Needs the folder's tokenizer, not its weights. Raises UserError as `run` does.
    """
    check_model(hf_dir)
    quiet()
    loaded, missing = load_tasks(suite, asked, hf_dir)
    _check_template(hf_dir, loaded)
    tokenizer = AutoTokenizer.from_pretrained(hf_dir)
    for one in loaded:

        def rendered(messages: list[dict[str, str]], add_generation_prompt: bool = True, mode: Mode = one.mode) -> str:
            final = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
            arguments: dict[str, Any] = final | template_arguments(mode)
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **arguments))

        for task in one.tasks:
            task.set_fewshot_seed(suite.seed)
            task.build_all_requests(
                limit=count,
                system_instruction=system_message(suite, one.mode),
                apply_chat_template=one.mode != "base",
                fewshot_as_multiturn=one.mode != "base",
                chat_template=rendered if one.mode != "base" else None,
            )
            shown = ""
            for instance in task.instances:
                prompt, *then = instance.args
                question = f"\n== {task.task_name}, {one.mode}, question {instance.doc_id}\n{prompt}"
                if question != shown:
                    print(shown := question)
                if then:
                    print(f"-> {then[0]!r}")
    for name, reason in missing.items():
        print(f"== {name} cannot be run: {reason}")


def run(
    hf_dir: Path,
    suite: Suite,
    asked: Sequence[SuiteTask],
    output: Path,
    subset: int | None,
    server: Server | None = None,
    at_once: int = 32,
) -> dict[str, Any]:
    """Evaluate and write OUT_DIR; returns the record of results.json, in which "not_run" names what could not be reached.

    `server` answers, to `at_once` requests at a time, in place of the folder's weights; judges are asked when OUT_DIR is there
    (judge.py). Raises UserError, with no OUT_DIR written, for a folder that is no model or whose parity failed, for an OUT_DIR
    that is there, for what tasks.py finds, and for a server or a judge that does not answer.
    """
    check_model(hf_dir)
    if output.exists():
        raise UserError(f"--output {output} is there already; give a new folder, or remove it")
    quiet()
    loaded, missing = load_tasks(suite, asked, hf_dir)
    _check_template(hf_dir, loaded)
    judge.check(asked)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training = training_of(hf_dir)
    record: dict[str, Any] = {
        "model": str(hf_dir),
        **training._asdict(),
        **{key: {} for key in EMPTY},
        "not_run": missing,
        "seconds": {},
        "subset": subset,
        "suite": suite.model_dump(mode="json", exclude_none=True),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "engine": {"name": "server", "url": server.shown, "served_model": server.model} if server else {"name": "transformers"},
        "device": None if server else device,
    }
    answers = output.with_name(f"{output.name}.answers.jsonl")
    partial = output.with_name(f"{output.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        if loaded:
            model = _served(hf_dir, suite, server, answers, at_once) if server else LocalModel(hf_dir, suite, device)
            check_generation(model, loaded)
            for mode in dict.fromkeys(one.mode for one in loaded):
                started = time.monotonic()
                in_mode = [one for one in loaded if one.mode == mode]
                evaluated = ask(model, suite, in_mode, subset)
                for one in in_mode:
                    record_task(model, one, evaluated, record, partial, suite.seed)
                record["seconds"][mode] = round(time.monotonic() - started, 1)
        (partial / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
        partial.rename(output)
        answers.unlink(missing_ok=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return judge.judge_all(output, at_once)


def check_model(hf_dir: Path) -> None:
    """Raises UserError for a folder that transformers cannot load, and for an export whose logits were not the trainer's."""
    if not (hf_dir / "config.json").is_file():
        raise UserError(f"{hf_dir} has no config.json; give a Hugging Face folder, as to-hf makes them")
    parity = hf_dir / "parity.json"
    if parity.is_file() and not json.loads(parity.read_text(encoding="utf8")).get("passed"):
        raise UserError(f"{hf_dir}: parity.json says that it is not its checkpoint; export it again before it is scored")


def training_of(hf_dir: Path) -> Progress:
    """From an export's training.json, TRL's trainer_state.json, or the end of the folder's name.

    Raises UserError for a training.json that cannot be read.
    """
    try:
        if told := smol_progress.read(hf_dir):
            return told
    except (ValueError, TypeError) as error:
        raise UserError(f"{hf_dir / smol_progress.NAME} is damaged ({error}); export the checkpoint again") from error
    with contextlib.suppress(OSError, ValueError, KeyError):
        state = json.loads((hf_dir / "trainer_state.json").read_text(encoding="utf8"))
        return Progress(state["global_step"], state.get("num_input_tokens_seen"))
    named = re.search(r"(?:step|checkpoint|iter)[_-]0*(\d+)$", hf_dir.name)
    return Progress(int(named[1]) if named else None)


def _check_template(hf_dir: Path, loaded: Sequence[Loaded]) -> None:
    chats = [f"{one.asked.name} ({one.mode})" for one in loaded if one.mode != "base"]
    if chats and not AutoTokenizer.from_pretrained(hf_dir).chat_template:
        tasks = ", ".join(chats)
        raise UserError(f"{hf_dir} has no chat template for {tasks}; take these out of the suite or give a chat model")


def _served(hf_dir: Path, suite: Suite, server: Server, answers: Path, at_once: int) -> HFLM:
    return ServedModel(hf_dir, server, answers, max_length=suite.max_length, seed=suite.seed, at_once=at_once)
