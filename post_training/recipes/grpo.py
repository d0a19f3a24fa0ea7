"""What GRPO needs beside TRL's trainer: checks, the rewards of post_training/rewards.py, warnings where nothing is learnt.

    prompts --TRL samples--> token ids --replies()--> rewards, one number an answer --TRL--> advantages within each group

Answers are read from their token ids, not from TRL's text of them, which lacks what the tokenizer calls special.
"""

import json
import math
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoConfig, TrainerCallback

from post_training import rewards
from post_training.prepare import Prepared
from post_training.recipes.config import GrpoConfig
from post_training.rewards import Reply
from post_training.template import Renderer
from smol_answers import END_THINK, THINK
from smol_config import UserError
from smol_files import keep_until

ANSWERS = "answers.jsonl"
"""In the run's folder: a group of every logged step, with its rewards, to read what is being rewarded."""
GOLDS_READ = 200
"""Answers of each source that are read before training; those read later and not understood are counted."""
_OPENING = re.compile(rf"{THINK}\s*(?:{END_THINK}\s*)?\Z")


# --- before training ---------------------------------------------------------------------------------------------------------


def check_vllm(config: GrpoConfig) -> None:
    """Raise UserError where vLLM is asked for and is not there."""
    if config.grpo.vllm and find_spec("vllm") is None:
        raise UserError(
            "grpo.vllm is set, but vLLM is not installed here; make an environment of requirements-grpo.txt, or leave "
            "grpo.vllm out and let transformers sample"
        )


def check_prompts(config: GrpoConfig, prepared: Prepared) -> None:
    """Raise UserError for prompts and answers that do not fit the model, and for gold answers that judge nothing."""
    positions = getattr(AutoConfig.from_pretrained(config.model, local_files_only=True), "max_position_embeddings", None)
    longest = config.data.max_length + config.grpo.max_answer
    if positions and longest > positions:
        raise UserError(
            f"data.max_length={config.data.max_length} + grpo.max_answer={config.grpo.max_answer} tokens are more than the "
            f"{positions} positions of {config.model}; lower one"
        )
    if config.rewards.accuracy:
        for part in (prepared.train, prepared.held_out):
            if part is not None and config.rewards.accuracy.column in part.column_names:
                _check_golds(config.rewards.accuracy, part)


def _check_golds(accuracy: Any, rows: Any) -> None:
    """Each row of a source that keeps the column has a gold answer; the first ones can be compared with."""
    read: dict[str, set[str]] = {}
    for number, (dataset, gold) in enumerate(zip(rows["dataset"], rows[accuracy.column], strict=True)):
        if gold is None:  # a source without the column
            continue
        if not gold.strip():
            raise UserError(
                f"dataset {dataset}: {accuracy.column} of prepared row {number} is empty, so that no answer can be right; "
                "remove such rows"
            )
        seen = read.setdefault(dataset, set())
        if dataset in accuracy.exact or gold in seen or len(seen) >= GOLDS_READ:
            continue
        seen.add(gold)
        if not rewards.is_mathematics(gold):
            raise UserError(
                f"dataset {dataset}: {accuracy.column}={gold[:60]!r} is nothing that math-verify reads; add the source to "
                "rewards.accuracy.exact, or remove such rows"
            )


# --- rewards as TRL calls them -----------------------------------------------------------------------------------------------


def openings(tokenizer: Any, today: str) -> dict[str, str]:
    """By mode, what of an answer stands in the prompt already: nothing, <think>, or the empty thought of /no_think."""
    render, found = Renderer(tokenizer, today), {}
    for mode in ("think", "no_think"):
        chat = [{"role": "system", "content": f"/{mode}"}, {"role": "user", "content": "?"}]
        ending = _OPENING.search(render(chat, prompt=True).text)
        found[mode] = ending[0] if ending else ""
    return found


def reward_functions(config: GrpoConfig, tokenizer: Any) -> list[Any]:
    """The chosen rewards, in the order of their weights."""
    begun, ends = openings(tokenizer, config.data.today), set(tokenizer.all_special_ids)

    def replies(completion_ids: list[list[int]], modes: list[Any]) -> list[Reply]:
        bare = [ids[:-1] if ids and ids[-1] in ends else ids for ids in completion_ids]
        texts = tokenizer.batch_decode(bare)
        return [
            rewards.reply(text, mode, len(ids), begun[mode])
            for text, mode, ids in zip(texts, modes, completion_ids, strict=True)
        ]

    return [_as_trl(name, judge, replies) for name, judge in rewards.judges(config.rewards).items()]


def _as_trl(name: str, judge: rewards.Judge, replies: Callable[..., list[Reply]]) -> Any:
    """A function of a batch, under the reward's name. None stands for: does not apply."""

    def reward(
        prompts: Any, completions: Any, completion_ids: Any, mode: Any, dataset: Any, log_metric: Any = None, **columns: Any
    ) -> list[float | None]:
        found: list[float | None] = []
        for place, one in enumerate(replies(completion_ids, mode)):
            row = {key: values[place] for key, values in columns.items() if isinstance(values, list)}
            value = judge(one, row | {"dataset": dataset[place]})
            if value is not None and not math.isfinite(value):  # TRL would take it for: does not apply
                raise UserError(
                    f"reward {name} is {value} for an answer to a prompt of dataset {dataset[place]}; rewards must be finite: "
                    "mend post_training/rewards.py"
                )
            found.append(value)
        if log_metric:
            log_metric(f"rewards/{name}/judged", sum(value is not None for value in found) / len(found))
        return found

    reward.__name__ = name
    return reward


# --- while it trains ---------------------------------------------------------------------------------------------------------


class RewardWatch(TrainerCallback):
    """Warns by name of rewards that do not tell answers apart, and of answers that never end; keeps answers to read."""

    def __init__(self, config: GrpoConfig, trainer: Any) -> None:
        self.config, self.trainer = config, trainer
        self.path = Path(config.train.output_dir) / ANSWERS
        self._streaks: dict[str, int] = {}
        self._said: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            keep_until(self.path, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs: dict[str, Any] = given["logs"]
        if not state.is_world_process_zero or "frac_reward_zero_std" not in logs:
            return
        for fault, (scalar, value) in self._faults().items():
            self._streaks[fault] = self._streaks.get(fault, 0) + 1 if logs.get(scalar) == value else 0
            self._warn(fault, state.global_step)
        self._keep_answers(state.global_step)

    def _faults(self) -> dict[str, tuple[str, float]]:
        """What is warned of, and the scalar that has this value then."""
        names, teaches = list(self.config.rewards.weights), "so that it teaches nothing"
        faults: dict[str, tuple[str, float]] = {}
        for name in names:
            faults[f"reward {name} is the same within every group, {teaches}"] = (f"rewards/{name}/equal_groups", 1)
            # No group is equal then, and where no reward applies at all, TRL's share of equal groups is NaN.
            faults[f"reward {name} applies to no answer, {teaches}"] = (f"rewards/{name}/judged", 0)
        if len(names) > 1:
            faults[f"the sum of {' and '.join(names)} is the same within every group, {teaches}"] = ("frac_reward_zero_std", 1)
        cut = f"every answer was cut at grpo.max_answer={self.config.grpo.max_answer}"
        faults[f"{cut}, none came to its end"] = ("completions/clipped_ratio", 1)
        return faults

    def _warn(self, fault: str, step: int) -> None:
        """The first time, and then whenever it has gone on for long."""
        streak, long = self._streaks[fault], self.config.grpo.warn_after
        if streak and (streak % long == 0 or fault not in self._said):
            self._said.add(fault)
            times = f", for {streak} logged steps now" if streak > 1 else ""
            remedy = "; give easier or harder prompts, more grpo.answers, or look at them" if streak >= long else ""
            print(f"warning: step {step}: {fault}{times}{remedy} ({self.path})", file=sys.stderr, flush=True)

    def _keep_answers(self, step: int) -> None:
        logged, count = self.trainer._logs, self.config.grpo.answers
        with self.path.open("a", encoding="utf8") as file:
            for place in range(-count, 0):
                found = {name: values[place] for name, values in logged["rewards"].items()}
                line = {"step": step, "prompt": logged["prompt"][place], "answer": logged["completion"][place][0]["content"]}
                line |= {"rewards": {name: value if math.isfinite(value) else None for name, value in found.items()}}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
