"""The engine of `run --server`: a server that speaks OpenAI's completions, such as vLLM's, answers in the model's place.

    lm-eval's requests --HFLM's own encoding--> token ids --POST URL/completions--> log-probabilities of the prompt, or text

The prompts are those of the transformers engine, token for token: templates, encoding and windows are lm-eval's HFLM itself, of
which only the two methods that run the network are replaced. lm-eval's own `local-completions` would not do: it sends one
seed with every response of avg@k, takes an answer without log-probabilities for a likelihood of 1, cuts long texts at other
places, and asks for one text after another.

What was answered is kept beside OUT_DIR until OUT_DIR is whole: a run that broke off asks only for the rest.
"""

import asyncio
import hashlib
import json
import os
import sys
from asyncio import sleep
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text, resolve_max_length
from transformers import AutoConfig, AutoTokenizer

from smol_config import UserError, nearest
from smol_console import Progress

ATTEMPTS = 5
LONGEST_WAIT = 60.0
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
    """A request's body; the tokens before `scored` are context. None: text is asked for."""

    body: dict[str, Any]
    scored: int | None = None


Answer = tuple[float, bool] | str
"""A log-likelihood, and whether greedy decoding would have said the same; or text."""


def find(url: str, model: str | None) -> Server:
    """The server's model of that name, or its only one.

    Raises UserError for an address where no such server answers, and a name that it does not have.
    """
    server = Server(url.rstrip("/"), model or "", None)
    try:
        response = httpx2.get(f"{server.url}/models", headers=_headers(), timeout=30)
        if response.status_code != 200:
            raise UserError(f"--server {server.shown}: {_said(response)}; give the address that ends in /v1, and {KEY}")
        served = {entry["id"]: entry.get("max_model_len") for entry in response.json()["data"]}
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"--server {server.shown}: no list of models ({type(error).__name__} {error}); start it, or mend the address"
        ) from error
    if model is None and len(served) != 1:
        raise UserError(f"--server {server.shown} serves {', '.join(sorted(served)) or 'no model'}; choose by --served-model")
    name = model or next(iter(served))
    if name not in served:
        raise UserError(f"--served-model {name!r} is none that {server.shown} has; {nearest(name, served)}")
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


class ServedModel(HFLM):
    """HFLM whose network is behind a server: `hf_dir` gives tokenizer, template and length, not weights."""

    def __init__(self, hf_dir: Path, server: Server, answers: Path, *, max_length: int | None, seed: int, at_once: int) -> None:
        LM.__init__(self)  # HFLM's own would load the weights
        self.tokenizer = AutoTokenizer.from_pretrained(hf_dir)
        self.chat_template_args: dict[str, Any] = {}
        self.add_bos_token = self.custom_prefix_token_id = self.enable_thinking = None
        self.batch_size_per_gpu = sys.maxsize  # all requests together: how many run at once is `at_once`
        longest = max_length or resolve_max_length(AutoConfig.from_pretrained(hf_dir), self.tokenizer)
        # HFLM reads max_length tokens and scores one after them; the server wants to add another.
        self._max_length = min(longest, (server.context or longest) - 2)
        self.server, self.seed, self.at_once = server, seed, at_once
        self.answers = Answers(answers)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """(log-likelihood, greedy) of each continuation; without lm-eval's bars."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """Log-likelihood of each text."""
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Any]:
        """(log-likelihood, greedy) of each continuation, given as (_, context's ids, continuation's ids)."""
        settings = {"model": self.server.model, "max_tokens": 1, "temperature": 0.0, "logprobs": 1, "echo": True}
        jobs = []
        for _, context, continuation in requests:
            prompt = [*context, *continuation][-(self.max_length + 1) :]
            jobs.append(Job({**settings, "prompt": prompt}, len(prompt) - len(continuation)))
        return [tuple(answer) for answer in self._ask(jobs)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to its first stop word."""
        jobs, stops = [], []
        asked: Counter[str] = Counter()
        for context, settings in (request.args for request in requests):
            given: dict[str, Any] = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
            stop, most = given.pop("until"), given.pop("max_gen_toks")
            given["temperature"] = given.get("temperature", 0.0) if given.pop("do_sample") else 0.0  # left out it would be 1
            body = {"model": self.server.model, "max_tokens": most, "stop": stop, **given}
            body["prompt"] = self.tok_encode(context, left_truncate_len=self.max_length - most)
            number = asked[same := json.dumps(body)]  # with one seed all responses to a question would be the same
            asked[same] += 1
            jobs.append(Job(body | {"seed": self.seed + number}))
            stops.append(stop)
        texts = self._ask(jobs)
        return [postprocess_generated_text(text, stop, None) for text, stop in zip(texts, stops, strict=True)]

    # --- requests ----------------------------------------------------------------------------------------------------------

    def _ask(self, jobs: Sequence[Job]) -> list[Any]:
        """The answers, in order. Raises UserError where the server gives none."""
        try:
            return asyncio.run(self._ask_all(jobs))
        except ExceptionGroup as group:  # the first ends the others
            raise group.exceptions[0] from None

    async def _ask_all(self, jobs: Sequence[Job]) -> list[Any]:
        free = asyncio.Semaphore(self.at_once)
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(headers=_headers(), timeout=PATIENCE, limits=limits) as http:
            with Progress(f"asking {self.server.model}", "requests", len(jobs)) as progress:

                async def answered(job: Job) -> Answer:
                    key = hashlib.sha256(json.dumps([self.server.shown, *job]).encode()).hexdigest()
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
        for attempt in range(ATTEMPTS):
            wait = 2.0**attempt
            try:
                response = await http.post(f"{self.server.url}/completions", json=job.body)
                if response.status_code == 200:
                    return self._read(response, job)
                fault = _said(response)
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
                text = choice["text"]
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


def _headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY)) else {}


def _said(response: httpx2.Response) -> str:
    """A status and the beginning of its text."""
    return f"{response.status_code} {' '.join(response.text.split())[:200]}".strip()


def _asked_for(response: httpx2.Response) -> float:
    """Seconds that the server wants to be left alone for."""
    try:
        return min(LONGEST_WAIT, float(response.headers.get("retry-after", 0)))
    except ValueError:  # a date
        return 0.0
