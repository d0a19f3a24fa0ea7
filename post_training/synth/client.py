"""One request to an OpenAI-compatible endpoint: sent, tried again where that can help, its answer taken apart.

connection lost, time out, 429, 5xx, an answer that is none      tried again, after a wait; then the run is ended: Unreachable
400, 413, 422                                                    this prompt is refused: LeftOut
401, 403, 404 and all others                                     the run is ended: the key, the model or the URL is wrong
"""

import os
from asyncio import sleep
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx2

from post_training.normalise import Message
from post_training.synth.config import Endpoint
from smol_answers import parse
from smol_config import UserError

LONGEST_WAIT = 60.0
_OF_THE_PROMPT = (400, 413, 422)
Mode = Literal["think", "no_think"]


class LeftOut(Exception):
    """No row comes of a prompt; `kind` groups such prompts, the text says why."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Unreachable(UserError):
    """The endpoint gave no usable answer to the last attempt."""


@dataclass
class Usage:
    """Tokens that were paid for."""

    input: int = 0
    output: int = 0

    def add(self, other: "Usage") -> None:
        self.input += other.input
        self.output += other.output


@dataclass(frozen=True)
class Reply:
    """An answer."""

    message: Message
    """role, content, and reasoning_content where it reasoned."""
    text: str
    """The same as the model wrote it, with <think> tags."""
    usage: Usage


class Client:
    """Asks one endpoint."""

    def __init__(self, endpoint: Endpoint, attempts: int, timeout_seconds: float) -> None:
        """Raises UserError where the environment variable of the key is not set."""
        headers = {}
        if endpoint.key:
            if not (key := os.environ.get(endpoint.key)):
                raise UserError(f"key={endpoint.key}: no such environment variable is set; export {endpoint.key}=... first")
            headers["Authorization"] = f"Bearer {key}"
        self.endpoint, self.attempts = endpoint, attempts
        # No limit of connections: how many requests run at once is the caller's to say.
        limits = httpx2.Limits(max_connections=None)
        self._http = httpx2.AsyncClient(headers=headers, timeout=timeout_seconds, limits=limits)

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, messages: Sequence[Message], mode: Mode, seed: int, usage: Usage) -> Reply:
        """The answer to a conversation whose system message holds no mode; `usage` gets its tokens.

        Raises LeftOut for one that is cut, empty, or not in its mode, UserError for an endpoint that cannot be used.
        """
        body = self._body(messages, mode, seed)
        for attempt in range(1, self.attempts + 1):
            wait = min(LONGEST_WAIT, 2.0 ** (attempt - 1))
            try:
                response = await self._http.post(f"{self.endpoint.url.rstrip('/')}/chat/completions", json=body)
                if response.status_code == 200:
                    return self._read(response, mode, usage)
                fault = self._refusal(response)
                wait = max(wait, _asked_for(response))
            except (httpx2.HTTPError, _NoAnswer) as error:
                fault = f"{type(error).__name__} {error}".strip()
            if attempt < self.attempts:
                await sleep(wait)
        raise Unreachable(
            f"{self.endpoint.model} at {self.endpoint.url} gave no answer in {self.attempts} attempts ({fault}); see to the "
            "server and give the command again: what is made stays"
        )

    def _body(self, messages: Sequence[Message], mode: Mode, seed: int) -> dict[str, Any]:
        end = self.endpoint
        sent: list[Message] = [{"role": message["role"], "content": message["content"]} for message in messages]
        body = {"model": end.model, "messages": sent, "seed": seed, "max_tokens": end.max_tokens}
        body |= {"temperature": end.temperature, "top_p": end.top_p}
        if end.mode_by == "template":
            body["chat_template_kwargs"] = {"enable_thinking": mode == "think"}
        elif end.mode_by == "system":
            said = sent.pop(0)["content"] + "\n" if sent[0]["role"] == "system" else ""
            sent.insert(0, {"role": "system", "content": f"{said}/{mode}"})
        return body

    def _refusal(self, response: Any) -> str:
        """What a status other than 200 says, for those that may pass."""
        status, said = response.status_code, " ".join(response.text.split())[:200]
        if status in _OF_THE_PROMPT:
            raise LeftOut("refused by the server", f"{status}: {said}")
        if status != 429 and status < 500:
            raise UserError(
                f"{self.endpoint.model} at {self.endpoint.url}: {status} {said}; mend the url, the model's name or the key"
            )
        return f"{status} {said}".strip()

    def _read(self, response: Any, mode: Mode, usage: Usage) -> Reply:
        try:
            content = response.json()
            choice, used = content["choices"][0], content.get("usage") or {}
            said = choice["message"]
            text, reasoning = said.get("content") or "", said.get("reasoning_content") or said.get("reasoning")
            own = Usage(int(used.get("prompt_tokens") or 0), int(used.get("completion_tokens") or 0))
            if not isinstance(text, str) or not isinstance(reasoning, str | None):
                raise TypeError("content is no text")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _NoAnswer(f"{error}: {response.text[:80]!r}") from error
        usage.add(own)
        if reasoning and reasoning.strip():
            text = f"<think>\n{reasoning.strip()}\n</think>\n{text}"
        answer = parse(text)
        if choice.get("finish_reason") == "length" or not answer.closed:
            raise LeftOut("cut", f"an answer does not end within max_tokens={self.endpoint.max_tokens}")
        if not answer.content:
            raise LeftOut("empty", "an answer is empty")
        if bool(answer.reasoning) != (mode == "think") and self.endpoint.mode_by != "none":
            raise LeftOut("not in its mode", f"an answer {'reasons' if answer.reasoning else 'does not reason'} in /{mode}")
        message: Message = {"role": "assistant", "content": answer.after_reasoning}
        if answer.reasoning and mode == "think":
            message["reasoning_content"] = answer.reasoning
        return Reply(message, text, own)


class _NoAnswer(Exception):
    """A status of 200, and no chat completion under it."""


def _asked_for(response: Any) -> float:
    """Seconds that the server wants to be left alone for."""
    try:
        return min(LONGEST_WAIT, float(response.headers.get("retry-after", 0)))
    except ValueError:  # a date
        return 0.0
