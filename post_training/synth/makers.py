"""One prompt -> one row, or LeftOut with the reason. What the three kinds of made data are.

Instructions are those of evaluation/offline/instructions.py, which also says whether an answer follows them: here they are
added to the prompts of the configuration, so that no question of that task is trained on.
"""

import asyncio
import json
import random
from dataclasses import dataclass
from typing import Any

from evaluation.offline.instructions import KINDS, score
from post_training.normalise import Message
from post_training.rewards import judges, reply
from post_training.synth.client import Client, LeftOut, Mode, Reply, Usage
from post_training.synth.config import SynthConfig

AGAIN = ("Write it again.", "Please revise your answer.", "Now a new version.", "Say it once more.")
AT_ODDS = ({"lowercase", "ending"}, {"sentences", "bullets"}, {"sentences", "title"})
"""Instructions that one answer can hardly follow together."""

Usages = dict[str, Usage]
"""By the model's place in the configuration: model, weak."""


@dataclass(frozen=True)
class Prompt:
    """What is answered."""

    id: str
    """Follows from all the others."""
    messages: list[Message]
    """Ends with a user's turn; the mode is not in it."""
    mode: Mode
    kept: dict[str, str]


class Maker:
    """Makes rows of the configuration's kind."""

    def __init__(self, config: SynthConfig, clients: dict[str, Client]) -> None:
        self.config, self.clients = config, clients
        self._make = {"pairs": self._pair, "graded": self._graded, "instructions": self._conversation}[config.kind]

    async def __call__(self, prompt: Prompt, usages: Usages) -> dict[str, Any]:
        """The row's columns; raises LeftOut, and UserError where an endpoint cannot be used. `usages` are added to."""
        row = await self._make(prompt, usages)
        return row | {"chat_template_kwargs": {"enable_thinking": prompt.mode == "think"}}

    async def _ask(self, place: str, prompt: Prompt, messages: list[Message], number: int, usages: Usages) -> Reply:
        import xxhash

        seed = xxhash.xxh32_intdigest(f"{self.config.seed} {prompt.id} {place} {number}") >> 1  # 31 bits, as servers want
        return await self.clients[place].ask(messages, prompt.mode, seed, usages[place])

    async def _pair(self, prompt: Prompt, usages: Usages) -> dict[str, Any]:
        chosen, rejected = [await self._ask(place, prompt, prompt.messages, 0, usages) for place in ("model", "weak")]
        return _preference(prompt, chosen, rejected)

    async def _graded(self, prompt: Prompt, usages: Usages) -> dict[str, Any]:
        graded = self.config.graded
        assert graded
        asked = [self._ask("model", prompt, prompt.messages, number, usages) for number in range(graded.answers)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        if faults := [one for one in found if isinstance(one, BaseException) and not isinstance(one, LeftOut)]:
            raise faults[0]
        answers = [one for one in found if isinstance(one, Reply)]
        if len(answers) < 2:
            raise LeftOut("too few answers", f"{len(answers)} of {graded.answers} can be used; of the others {found[-1]}")
        worth = [self._worth(prompt, one) for one in answers]
        best, worst = max(range(len(worth)), key=worth.__getitem__), min(range(len(worth)), key=worth.__getitem__)
        if worth[best] - worth[worst] < graded.least_gap:
            raise LeftOut("all alike", f"the answers are worth {worth[worst]:g} to {worth[best]:g}")
        return _preference(prompt, answers[best], answers[worst]) | {"worth": [worth[best], worth[worst]]}

    def _worth(self, prompt: Prompt, answer: Reply) -> float:
        """The weighted sum of the rewards that apply."""
        graded = self.config.graded
        assert graded
        judged = reply(answer.text, prompt.mode, answer.usage.output)
        row = prompt.kept | {"dataset": self.config.prompts.name}
        found = {name: judge(judged, row) for name, judge in judges(graded.rewards).items()}
        return sum(graded.rewards.weights[name] * value for name, value in found.items() if value is not None)

    async def _conversation(self, prompt: Prompt, usages: Usages) -> dict[str, Any]:
        settings = self.config.instructions
        draw = random.Random(f"{self.config.seed} {prompt.id}")
        wanted = draw_instructions(draw, settings.turns * settings.added)
        turns = [dict(message) for message in prompt.messages]
        for turn in range(settings.turns):
            new = wanted[turn * settings.added : (turn + 1) * settings.added]
            asked = " ".join(KINDS[kind].asks.format(value=value) for kind, value in new)
            if turn == 0:
                turns[-1]["content"] += f"\n\n{asked}"
            else:
                turns.append({"role": "user", "content": f"{draw.choice(AGAIN)} {asked}"})
            held = wanted[: (turn + 1) * settings.added]
            turns.append(await self._following(prompt, turns, held, turn * settings.tries, usages))
        return {"messages": turns, "constraints": json.dumps(wanted)}

    async def _following(self, prompt: Prompt, turns: list[Message], held: list[Any], first: int, usages: Usages) -> Message:
        """The first answer that follows all that is held; `first` is the request's number."""
        row, faults = {"constraints": json.dumps(held)}, []
        for number in range(first, first + self.config.instructions.tries):
            try:
                answer = await self._ask("model", prompt, turns, number, usages)
            except LeftOut as fault:
                faults.append(str(fault))
                continue
            if score(row, [answer.message["content"]])["all_followed"]:
                return answer.message
            faults.append(f"an answer does not follow {row['constraints']}")
        raise LeftOut("not followed", f"turn {len(turns)}: {faults[-1]}, in {len(faults)} tries")


def draw_instructions(draw: random.Random, count: int) -> list[list[Any]]:
    """[kind, value] of instructions that can be followed together, each of another kind."""
    while True:
        kinds = draw.sample(sorted(KINDS), count)
        if not any(pair <= set(kinds) for pair in AT_ODDS):
            return [[kind, draw.choice(KINDS[kind].values)] for kind in kinds]


def _preference(prompt: Prompt, chosen: Reply, rejected: Reply) -> dict[str, Any]:
    if chosen.message == rejected.message:
        raise LeftOut("same", "both answers are the same")
    return {"prompt": prompt.messages, "chosen": [chosen.message], "rejected": [rejected.message]}
