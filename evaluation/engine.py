"""A model in this process, and lm-eval's pass over all tasks of a mode, by it or by a server (server.py).

    Loaded tasks --lm-eval's evaluate--> what every question scored --record.py--> OUT_DIR

lm-eval's simple_evaluate calls the same `evaluate`, and then lists the packages of the machine: seconds in each mode. The bars
that it and other libraries draw would fill log files. Here all that is said comes from smol_console.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from evaluation.suite import Mode, Suite
from evaluation.tasks import Loaded, questions_of
from smol_config import UserError
from smol_console import Progress


def quiet() -> None:
    """From here on the libraries draw no bars; prompts, which lm-eval takes minutes to write, are counted here."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    lm_eval.api.task.tqdm = _prompts


def _prompts(documents: Sequence[Any], total: int) -> Iterator[Any]:
    with Progress("writing prompts", "questions", total) as progress:
        for document in documents:
            yield document
            progress.advance()


class LocalModel(HFLM):
    """lm-eval's HFLM, which says how far it is."""

    def __init__(self, hf_dir: Path, suite: Suite, device: str) -> None:
        settings: dict[str, Any] = {"batch_size": suite.batch_size, "max_length": suite.max_length, "dtype": suite.dtype}
        super().__init__(pretrained=str(hf_dir), device=device, **settings)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """(log-likelihood, whether greedy decoding would say the same) of each continuation."""
        with self._counted("likelihoods", "answers", len(requests)):
            return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """Log-likelihood of each text."""
        windows = sum(-(-len(self.tok_encode(*request.args)) // self.max_length) for request in requests)
        with self._counted("likelihoods of texts", "windows", windows):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """The text that follows each context, up to its first stop word."""
        with self._counted("responses", "responses", len(requests)):
            return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        found = super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        for asked, answer in zip(requests, found, strict=True):
            if asked[0] is None:  # a window of a text: lm-eval tells its cache of whole texts alone, when all are done
                self.cache_hook.add_partial("window", asked, answer)
        return found

    @contextlib.contextmanager
    def _counted(self, label: str, unit: str, total: int) -> Iterator[None]:
        with Progress(label, unit, total) as progress:
            self.set_cache_hook(_Counter(progress))
            yield


class _Counter:
    """In the place of lm-eval's cache of answers, which is told of each when it is there."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """One more answer."""
        if kind != "loglikelihood_rolling":
            self.progress.advance()


# --- a pass ----------------------------------------------------------------------------------------------------------------


def check_generation(model: HFLM, loaded: Sequence[Loaded]) -> None:
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


def ask(model: HFLM, suite: Suite, loaded: Sequence[Loaded], subset: int | None) -> Any:
    """All tasks of one mode in one pass; lm-eval's results, with every question's samples."""
    mode = loaded[0].mode
    model.chat_template_args = template_arguments(mode)
    chosen: dict[str, list[int]] = {}
    for one in loaded:
        chosen |= questions_of(one, suite.seed, subset)
        for task in one.tasks:
            task.set_fewshot_seed(suite.seed)
    transformers.set_seed(suite.seed)
    return lm_eval.evaluate(
        lm=model,
        # They are built: no file is read again.
        task_dict=TaskManager(include_defaults=False).load([root for one in loaded for root in one.roots]),
        samples=chosen or None,
        system_instruction=system_message(suite, mode),
        apply_chat_template=mode != "base",
        fewshot_as_multiturn=mode != "base",
        bootstrap_iters=0,
    )
