"""Requests to an endpoint that speaks OpenAI's API: many at once, sent again where that can help, each answer kept on disk.

    Jobs --POST URL/completions or /chat/completions--> log-probabilities of a prompt, or text --> a line of Answers each

For the engine of `run --server` (server.py) and for judges (judge.py). What was answered is not asked for again.
"""

import asyncio
import hashlib
import json
import os
from asyncio import sleep
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2

from smol_config import UserError, nearest
from smol_console import Progress

ATTEMPTS = 5
LONGEST_WAIT = 60.0
OF_THE_PROMPT = (400, 413, 422)
PATIENCE = httpx2.Timeout(3600, connect=30)
"""Seconds for one answer: a long chain of thought in a full queue takes many minutes, and nothing comes before its end."""
KEY = "OPENAI_API_KEY"
"""The environment variable with the server's key, as lm-eval and OpenAI's own library name it."""


class Server(NamedTuple):
    """One model at one address."""

    url: str
    model: str
    """Its name there."""
    context: int | None
    """Tokens of a prompt and its answer together; None where the server does not say."""

    @property
    def shown(self) -> str:
        """The address without user, password and query."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class Job(NamedTuple):
    """A request's body: a chat where it has "messages"; the tokens before `scored` are context. None: text is asked for."""

    body: dict[str, Any]
    scored: int | None = None


Answer = tuple[float, bool] | str
"""A log-likelihood, and whether greedy decoding would have said the same; or text."""


def find(url: str, model: str | None, where: str = "--server", which: str = "--served-model", key: str = KEY) -> Server:
    """The server's model of that name, or its only one; `where` the address and `which` the name were given.

    Raises UserError for an address where no such server answers, and a name that it does not have.
    """
    server = Server(url.rstrip("/"), model or "", None)
    try:
        response = httpx2.get(f"{server.url}/models", headers=_headers(key), timeout=30)
        if response.status_code != 200:
            raise UserError(f"{where} {server.shown}: {_said(response)}; give the address that ends in /v1, and {key}")
        served = {entry["id"]: entry.get("max_model_len") for entry in response.json()["data"]}
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where} {server.shown}: no list of models ({type(error).__name__} {error}); start it, or mend the address"
        ) from error
    if model is None and len(served) != 1:
        raise UserError(f"{where} {server.shown} serves {', '.join(sorted(served)) or 'no model'}; choose by {which}")
    name = model or next(iter(served))
    if name not in served:
        raise UserError(f"{which} {name!r} is none that {server.shown} has; {nearest(name, served)}")
    return server._replace(model=name, context=served[name])


class Answers:
    """A file with a line an answer, [key, answer], of a run that is not done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf8").splitlines():
                with suppress(ValueError):  # a last line that was not written to its end
                    key, answer = json.loads(line)
                    self.known[key] = answer

    def add(self, key: str, answer: Answer) -> None:
        """Written at once: the process may end at any time."""
        self.known[key] = answer
        with self.path.open("a", encoding="utf8") as file:
            file.write(f"\n{json.dumps([key, answer])}")


class Client:
    """Asks one model; as many requests run at once as `at_once` says.

    `known_as` stands for it among the answers on disk: what has another name is another's answer.
    """

    def __init__(self, server: Server, answers: Path, at_once: int, known_as: str, key: str = KEY) -> None:
        self.server, self.at_once, self.known_as, self.key = server, at_once, known_as, key
        self.answers = Answers(answers)

    def ask(self, jobs: Sequence[Job]) -> list[Any]:
        """The answers, in order. Raises UserError where the server gives none."""
        try:
            return asyncio.run(self._ask_all(jobs))
        except ExceptionGroup as group:  # the first ends the others
            raise group.exceptions[0] from None

    async def _ask_all(self, jobs: Sequence[Job]) -> list[Any]:
        free = asyncio.Semaphore(self.at_once)
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(headers=_headers(self.key), timeout=PATIENCE, limits=limits) as http:
            with Progress(f"asking {self.server.model}", "requests", len(jobs)) as progress:

                async def answered(job: Job) -> Answer:
                    key = hashlib.sha256(json.dumps([self.known_as, *job]).encode()).hexdigest()
                    async with free:
                        if key not in self.answers.known:
                            self.answers.add(key, await self._answer(http, job))
                        progress.advance()
                        answer: Answer = self.answers.known[key]
                        return answer

                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(answered(job)) for job in jobs]
        return [task.result() for task in tasks]

    async def _answer(self, http: httpx2.AsyncClient, job: Job) -> Answer:
        """Of one request, sent again where the server is busy, gone, or talks nonsense."""
        who = f"{self.server.model} at {self.server.shown}"
        path = "chat/completions" if "messages" in job.body else "completions"
        for attempt in range(ATTEMPTS):
            wait = 2.0**attempt
            try:
                response = await http.post(f"{self.server.url}/{path}", json=job.body)
                if response.status_code == 200:
                    return self._read(response, job)
                fault = _said(response)
                if response.status_code in OF_THE_PROMPT and "messages" in job.body:  # one answer's fault, and not the judge's
                    return f"refused: {fault}"
                if response.status_code != 429 and response.status_code < 500:
                    raise UserError(f"{who} refuses a request: {fault}; mend what it says{self._kept()}")
                wait = max(wait, _asked_for(response))
            except (httpx2.HTTPError, _NoAnswer) as error:
                fault = f"{type(error).__name__} {error}".strip()
            if attempt < ATTEMPTS - 1:
                await sleep(wait)
        raise UserError(
            f"{who} gave no answer in {ATTEMPTS} attempts ({fault}); see to the server and give the command again{self._kept()}"
        )

    def _kept(self) -> str:
        known = len(self.answers.known)
        return f": its {known:,} answers are in {self.answers.path} and are not asked for again" if known else ""

    def _read(self, response: httpx2.Response, job: Job) -> Answer:
        """Raises _NoAnswer for what is no completion, UserError for one without the prompt's log-probabilities."""
        try:
            choice = response.json()["choices"][0]
            if job.scored is None:
                # A chat that ended in the middle of its reasoning has no content.
                text = choice["message"]["content"] or "" if "messages" in job.body else choice["text"]
                if not isinstance(text, str):
                    raise TypeError("text is none")
                return text
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _NoAnswer(f"{error}: {response.text[:80]!r}") from error
        scored = slice(job.scored, len(job.body["prompt"]))
        try:
            values = choice["logprobs"]["token_logprobs"][scored]
            best = [max(one.values()) for one in choice["logprobs"]["top_logprobs"][scored]]
            if not len(values) == len(best) == scored.stop - scored.start:
                raise IndexError("too short")
            return float(sum(values)), all(value >= most for value, most in zip(values, best, strict=True))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.server.model} at {self.server.shown} gives no log-probabilities of the prompt, which echo and logprobs "
                "ask for; take the tasks that compare likelihoods out of the suite, or serve the model with vLLM"
            ) from error


class _NoAnswer(Exception):
    """A status of 200, and no completion under it."""


def _headers(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if (key := os.environ.get(name)) else {}


def _said(response: httpx2.Response) -> str:
    """A status and the beginning of its text."""
    return f"{response.status_code} {' '.join(response.text.split())[:200]}".strip()


def _asked_for(response: httpx2.Response) -> float:
    """Seconds that the server wants to be left alone for."""
    try:
        return min(LONGEST_WAIT, float(response.headers.get("retry-after", 0)))
    except ValueError:  # a date
        return 0.0
