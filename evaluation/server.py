"""The engine of `run --server`: a server that speaks OpenAI's completions, such as vLLM's, answers in the model's place.

    lm-eval's requests --HFLM's own encoding--> token ids --POST URL/completions--> log-probabilities of the prompt, or text

The prompts are those of the transformers engine, token for token: templates, encoding and windows are lm-eval's HFLM itself, of
which only the two methods that run the network are replaced. lm-eval's own `local-completions` would not do: it sends one
seed with every response of avg@k, takes an answer without log-probabilities for a likelihood of 1, cuts long texts at other
places, and asks for one text after another.

What was answered is kept beside OUT_DIR until OUT_DIR is whole: a run that broke off asks only for the rest.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text, resolve_max_length
from transformers import AutoConfig, AutoTokenizer

from evaluation.client import Client, Job, Server


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
        self.seed, self.model_name = seed, server.model
        self.client = Client(server, answers, at_once, known_as=server.shown)

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
        settings = {"model": self.model_name, "max_tokens": 1, "temperature": 0.0, "logprobs": 1, "echo": True}
        jobs = []
        for _, context, continuation in requests:
            prompt = [*context, *continuation][-(self.max_length + 1) :]
            jobs.append(Job({**settings, "prompt": prompt}, len(prompt) - len(continuation)))
        return [tuple(answer) for answer in self.client.ask(jobs)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each context, up to its first stop word."""
        jobs, stops = [], []
        asked: Counter[str] = Counter()
        for context, settings in (request.args for request in requests):
            given: dict[str, Any] = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
            stop, most = given.pop("until"), given.pop("max_gen_toks")
            given["temperature"] = given.get("temperature", 0.0) if given.pop("do_sample") else 0.0  # left out it would be 1
            body = {"model": self.model_name, "max_tokens": most, "stop": stop, **given}
            body["prompt"] = self.tok_encode(context, left_truncate_len=self.max_length - most)
            number = asked[same := json.dumps(body)]  # with one seed all responses to a question would be the same
            asked[same] += 1
            jobs.append(Job(body | {"seed": self.seed + number}))
            stops.append(stop)
        texts = self.client.ask(jobs)
        return [postprocess_generated_text(text, stop, None) for text, stop in zip(texts, stops, strict=True)]
