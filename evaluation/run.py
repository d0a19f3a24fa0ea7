"""`run` and `show`: a Hugging Face folder through a suite by lm-eval, mode by mode; what would be asked, without a model.

    suite --tasks.py--> lm-eval's tasks --lm_eval.simple_evaluate--> per question and mode --results.py--> OUT_DIR

One pass of the model takes all tasks of a mode together, as lm-eval's own command does, and scores are those of that command.
OUT_DIR gets its name when it is whole.
"""

import contextlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lm_eval
import torch
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from evaluation import heat_map, results
from evaluation.results import Samples, Scores
from evaluation.server import ServedModel, Server
from evaluation.suite import NAMED_METRICS, Mode, Suite, SuiteTask
from evaluation.tasks import Loaded, gold, load_tasks, questions_of
from smol_config import UserError

PACKAGES = ("lm_eval", "transformers", "torch", "datasets", "tokenizers")


class Training(NamedTuple):
    """How far the training behind a folder had come, as far as that can be read from it."""

    step: int | None
    tokens: int | None
    learning_rate_share: float | None = None
    """Of the highest that the run had up to there: 1 in a stable phase, less once it decays."""


def show(hf_dir: Path, suite: Suite, asked: Sequence[SuiteTask], count: int) -> None:
    """Print the first `count` prompts of each task in each mode, as the model of `hf_dir` would get them, and what is scored.

    Needs the folder's tokenizer, not its weights. Raises UserError as `run` does.
    """
    check_model(hf_dir)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
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
    at_once: int = 1,
) -> dict[str, Any]:
    """Evaluate and write OUT_DIR; returns the record of results.json, in which "not_run" names what could not be reached.

    `server` answers, to `at_once` requests at a time, in place of the folder's weights. Raises UserError, with no OUT_DIR
    written, for a folder that is no model or whose parity failed, for an OUT_DIR that is there, for what tasks.py finds, and
    for a server that does not answer.
    """
    check_model(hf_dir)
    if output.exists():
        raise UserError(f"--output {output} is there already; give a new folder, or remove it")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    loaded, missing = load_tasks(suite, asked, hf_dir)
    _check_template(hf_dir, loaded)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training = training_of(hf_dir)
    record: dict[str, Any] = {
        "model": str(hf_dir),
        **training._asdict(),
        **{key: {} for key in ("results", "intervals", "chance", "higher_is_better", "parts", "tasks")},
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
            model = _served(hf_dir, suite, server, answers, at_once) if server else _model(hf_dir, suite, device)
            _check_generation(model, loaded)
            for mode in dict.fromkeys(one.mode for one in loaded):
                started = time.monotonic()
                _evaluate(model, suite, [one for one in loaded if one.mode == mode], subset, record, partial)
                record["seconds"][mode] = round(time.monotonic() - started, 1)
        (partial / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
        partial.rename(output)
        answers.unlink(missing_ok=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return record


def check_model(hf_dir: Path) -> None:
    """Raises UserError for a folder that transformers cannot load, and for an export whose logits were not the trainer's."""
    if not (hf_dir / "config.json").is_file():
        raise UserError(f"{hf_dir} has no config.json; give a Hugging Face folder, as to-hf makes them")
    parity = hf_dir / "parity.json"
    if parity.is_file() and not json.loads(parity.read_text(encoding="utf8")).get("passed"):
        raise UserError(f"{hf_dir}: parity.json says that it is not its checkpoint; export it again before it is scored")


def training_of(hf_dir: Path) -> Training:
    """From the checkpoint that parity.json names, TRL's trainer_state.json, or the end of the folder's name."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        state = json.loads((hf_dir / "trainer_state.json").read_text(encoding="utf8"))
        return Training(state["global_step"], state.get("num_input_tokens_seen"))
    with contextlib.suppress(OSError, ValueError, KeyError):
        checkpoint = Path(json.loads((hf_dir / "parity.json").read_text(encoding="utf8"))["checkpoint"])
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf8"))
        return Training(state["step"], state["tokens"], _learning_rate_share(checkpoint.parent, state["step"]))
    named = re.search(r"(?:step|checkpoint|iter)[_-]0*(\d+)$", hf_dir.name)
    return Training(int(named[1]) if named else None, None)


def _learning_rate_share(run: Path, step: int) -> float | None:
    """From the run's metrics.jsonl; None where it has no line of the step."""
    rates = {}
    with contextlib.suppress(OSError, ValueError), (run / "metrics.jsonl").open(encoding="utf8") as file:
        for line in map(json.loads, file):
            if line["step"] <= step and "train/learning_rate" in line:
                rates[line["step"]] = line["train/learning_rate"]
    return rates[step] / max(rates.values()) if step in rates and any(rates.values()) else None


def _check_template(hf_dir: Path, loaded: Sequence[Loaded]) -> None:
    chats = [f"{one.asked.name} ({one.mode})" for one in loaded if one.mode != "base"]
    if chats and not AutoTokenizer.from_pretrained(hf_dir).chat_template:
        tasks = ", ".join(chats)
        raise UserError(f"{hf_dir} has no chat template for {tasks}; take these out of the suite or give a chat model")


def _model(hf_dir: Path, suite: Suite, device: str) -> HFLM:
    return HFLM(
        pretrained=str(hf_dir), device=device, dtype=suite.dtype, batch_size=suite.batch_size, max_length=suite.max_length
    )


def _served(hf_dir: Path, suite: Suite, server: Server, answers: Path, at_once: int) -> HFLM:
    return ServedModel(hf_dir, server, answers, max_length=suite.max_length, seed=suite.seed, at_once=at_once)


def _check_generation(model: HFLM, loaded: Sequence[Loaded]) -> None:
    """Raises UserError for a response without room for its question, and for sampling of which only one engine makes sense."""
    for task in (task for one in loaded for task in one.tasks if task.OUTPUT_TYPE == "generate_until"):
        settings = task.config.generation_kwargs
        if (most := settings.get("max_gen_toks", model.max_gen_toks)) >= model.max_length:
            raise UserError(
                f"task {task.task_name}: max_gen_toks: {most} leaves no room for the question in {model.max_length} tokens; "
                "lower it in generation, or raise max_length"
            )
        if settings.get("do_sample") and not settings.get("temperature"):
            raise UserError(f"task {task.task_name}: do_sample without temperature; give both in generation")


def system_message(suite: Suite, mode: Mode) -> str | None:
    """The mode's flag, as SmolLM3's template reads it, and the suite's own words."""
    said = [f"/{mode}"] if mode in ("think", "no_think") else []
    return "\n\n".join([*said, *([suite.system] if suite.system else [])]) or None if mode != "base" else None


def template_arguments(mode: Mode) -> dict[str, Any]:
    """What the template is told of the mode."""
    return {"enable_thinking": mode == "think"} if mode in ("think", "no_think") else {}


def _evaluate(
    model: HFLM, suite: Suite, loaded: Sequence[Loaded], subset: int | None, record: dict[str, Any], folder: Path
) -> None:
    """All tasks of one mode in one call of lm-eval, into the record and the folder."""
    mode = loaded[0].mode
    model.chat_template_args = template_arguments(mode)
    chosen: dict[str, list[int]] = {}
    for one in loaded:
        chosen |= questions_of(one, suite.seed, subset)
    evaluated = lm_eval.simple_evaluate(
        model=model,
        tasks=[root for one in loaded for root in one.roots],
        task_manager=TaskManager(include_defaults=False),  # they are built: no file is read again
        samples=chosen or None,
        system_instruction=system_message(suite, mode),
        apply_chat_template=mode != "base",
        fewshot_as_multiturn=mode != "base",
        bootstrap_iters=0,
        random_seed=suite.seed,
        numpy_random_seed=suite.seed,
        torch_random_seed=suite.seed,
        fewshot_random_seed=suite.seed,
    )
    for one in loaded:
        _record_task(model, one, evaluated, record, folder, suite.seed)


def _record_task(model: HFLM, loaded: Loaded, evaluated: Any, record: dict[str, Any], folder: Path, seed: int) -> None:
    """One entry of the suite: its scores, those of a group's tasks as parts, its samples and pictures."""
    groups = [root for root in loaded.roots if isinstance(root, Group)]
    in_group = {task.task_name for group in groups if group.has_aggregation for task in group.get_all_tasks()}
    for task in loaded.tasks:
        name = task.task_name
        samples: Samples = evaluated["samples"][name]
        if task.OUTPUT_TYPE == "multiple_choice":
            for sample in samples:
                sample["gold"] = gold(task, sample["doc"])
            results.add_likelihood_metrics(samples, lambda context, text: len(model._encode_pair(context, text)[1]))
        scores = results.scores_of(samples, evaluated["results"][name], task.higher_is_better(), seed)
        _add(record, "parts" if name in in_group else "results", name, loaded, scores)
        label = name if loaded.mode == "base" else f"{name}_{loaded.mode}"
        path = folder / "samples" / f"{label}.jsonl"
        results.write_samples(path, samples, [*task.higher_is_better(), *NAMED_METRICS])
        heat_map.draw(results.read_samples(path), folder / f"depth_length_{label}.png")
        record["tasks"][label] = {
            "use": loaded.asked.use,
            "mode": loaded.mode,
            "version": task.VERSION,
            "questions": len({sample["doc_id"] for sample in samples}),
            "of": len(task.eval_docs),
            "shots": task.config.num_fewshot,
            "repeats": task.config.repeats,
            "generation": task.config.generation_kwargs,
            "truncated": _truncated(model, task, samples),
            "prompts_sha256": results.prompts_sha256(samples),
        }
    for group in groups:
        found = {key.partition(",")[0]: value for key, value in evaluated["results"][group.name].items() if "," in key}
        better = evaluated["higher_is_better"].get(group.name, {})
        scores = {m: Scores(m, v, None, None, better.get(m, True)) for m, v in found.items() if isinstance(v, float)}
        _add(record, "results", group.name, loaded, scores)


def _truncated(model: HFLM, task: Task, samples: Samples) -> int:
    """Questions that the model did not read from their beginning, since they were too long: lm-eval only logs that."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":  # in windows, each token once
        return 0
    room = model.max_length
    if task.OUTPUT_TYPE == "generate_until":
        room -= task.config.generation_kwargs.get("max_gen_toks", model.max_gen_toks)
    texts = [["".join(part for part in each if isinstance(part, str)) for each in sample["arguments"]] for sample in samples]
    return sum(max(len(model.tok_encode(text)) for text in of_question) > room for of_question in texts)


def _add(record: dict[str, Any], where: str, name: str, loaded: Loaded, scores: dict[str, Scores]) -> None:
    for metric, score in scores.items():
        if loaded.asked.metrics and score.metric not in loaded.asked.metrics:
            continue
        full = results.score_name(name, loaded.mode, metric)
        record[where][full] = score.value
        record["higher_is_better"][full] = score.higher_is_better
        if score.interval:
            record["intervals"][full] = score.interval
        if score.chance is not None:
            record["chance"][full] = score.chance
