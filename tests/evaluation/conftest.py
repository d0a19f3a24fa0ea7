"""Small models with random weights and the corpus's tokenizer, as base and as chat model; how tests write tasks and suites."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from completions_server import CompletionsServer
from evaluation_parts import OFFLINE, Write

TEMPLATE = """{%- for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>
{% endif %}{% endif %}"""


@pytest.fixture(scope="session")
def plain_model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder step_40 of a Llama of two layers that reads 512 tokens."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 1024}
    folder = tmp_path_factory.mktemp("models") / "step_40"
    config = transformers.LlamaConfig(**sizes, max_position_embeddings=512, eos_token_id=0, initializer_range=0.5)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(corpus / "tokenizer").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_model(plain_model: Path) -> Path:
    """The same with a chat template."""
    folder = plain_model.with_name("plain_chat")
    shutil.copytree(plain_model, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def write_suite(tmp_path: Path) -> Write:
    """suite(tasks, **settings) -> its file, whose folders hold the offline tasks and tmp_path/tasks."""

    def write(tasks: list[dict[str, Any]], **settings: Any) -> Path:
        (tmp_path / "tasks").mkdir(exist_ok=True)
        path = tmp_path / "suite.yaml"
        folders = [str(OFFLINE), str(tmp_path / "tasks")]
        path.write_text(yaml.safe_dump({"folders": folders, "dtype": "float32", "tasks": tasks, **settings}))
        return path

    return write


@pytest.fixture
def write_task(tmp_path: Path) -> Write:
    """task(name, rows, **settings): a multiple-choice task of JSON lines; returns its YAML file."""

    def write(name: str, rows: list[dict[str, Any]], **settings: Any) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(task | settings))
        return path

    return write


@pytest.fixture
def server(chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CompletionsServer]:
    """The tests' model behind a URL; nobody waits between attempts."""

    served = CompletionsServer(chat_model)

    async def at_once(seconds: float) -> None:
        served.waits.append(seconds)

    monkeypatch.setattr("evaluation.client.sleep", at_once)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield served
    served.close()
