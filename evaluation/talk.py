"""A chat model's folder, asked one turn after another: what `chat` and `vibe` share.

messages --the folder's chat template--> prompt --generate, streamed--> text --smol_answers.parse--> Answer
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from smol_answers import THINK, Answer, parse
from smol_config import UserError

Message = dict[str, Any]
Show = Callable[[str], None]
"""Takes an answer's text as it comes, some words at a time."""
NEW_TOKENS = 1024
"""Of an answer at most, where neither the command nor the folder's generation_config.json says."""


class Model:
    """A folder's tokenizer and network, on a GPU where there is one."""

    def __init__(self, hf_dir: Path) -> None:
        """Raises UserError for a folder that is no model, does not load or has no chat template."""
        if not (hf_dir / "config.json").is_file():
            raise UserError(f"{hf_dir} has no config.json; give a Hugging Face folder, as to-hf makes them")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True)
            network = AutoModelForCausalLM.from_pretrained(hf_dir, local_files_only=True, dtype="auto")
        except Exception as error:  # depends on which file is missing or damaged
            raise UserError(f"{hf_dir} does not load ({str(error).strip().splitlines()[0]}); mend the folder") from error
        if not self.tokenizer.chat_template:
            raise UserError(f"{hf_dir} has no chat template; give a chat model, as `post_training chat-model` makes one")
        self.network = network.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.room: int = network.config.max_position_embeddings

    def settings(self, **given: Any) -> Any:
        """The folder's generation_config with what is `given` and not None; a temperature of 0 is greedy."""
        config = copy.deepcopy(self.network.generation_config)
        config.max_new_tokens = config.max_new_tokens or NEW_TOKENS
        temperature = given.get("temperature")
        if temperature is not None:
            config.do_sample = temperature > 0
        elif given.get("top_p") is not None or given.get("top_k") is not None:
            config.do_sample = True
        if not config.do_sample:
            given = {key: value for key, value in given.items() if key not in ("temperature", "top_p", "top_k")}
            config.temperature = config.top_p = config.top_k = None
        for key, value in given.items():
            if value is not None:
                setattr(config, key, value)
        if config.pad_token_id is None:
            pad = self.tokenizer.pad_token_id
            config.pad_token_id = self.tokenizer.eos_token_id if pad is None else pad
        return config

    def prompt(self, messages: Sequence[Message], think: bool, tools: Sequence[dict[str, Any]], **options: Any) -> str:
        """What the network reads; `options` are the template's variables."""
        return str(
            self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=think,
                **options,
            )
        )

    def answer(self, prompt: str, settings: Any, show: Show | None = None) -> Answer:
        """The answer to a prompt. Raises UserError where no room is left for one."""
        import torch

        ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(self.network.device)
        length = ids["input_ids"].shape[1]
        if length >= self.room:
            raise UserError(f"the conversation has {length:,} tokens of the {self.room:,} that the model reads; begin anew")
        config = copy.deepcopy(settings)
        config.max_new_tokens = min(config.max_new_tokens, self.room - length)
        begun = THINK if prompt.rstrip().endswith(THINK) else ""  # some templates begin the thought
        if show and begun:
            show(begun)
        streamer = _streamer(self.tokenizer, show) if show else None
        with torch.no_grad():
            output = self.network.generate(**ids, generation_config=config, streamer=streamer)
        return parse(begun + str(self.tokenizer.decode(output[0, length:], skip_special_tokens=True)))


def message_of(answer: Answer) -> Message:
    """An answer as a turn of the conversation that the template reads."""
    message: Message = {"role": "assistant", "content": answer.content}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [{"type": "function", "function": call} for call in answer.tool_calls]
    return message


def _streamer(tokenizer: Any, show: Show) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        """Cuts at spaces and line ends, so that no tag is ever in two pieces."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            show(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
