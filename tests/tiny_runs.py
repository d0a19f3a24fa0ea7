"""Settings that make a real configuration small enough for a test. A module of its own: several folders have a conftest."""

from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"


def tiny_overrides(corpus: Path, output_dir: Path) -> list[str]:
    """configs/quickstart.yaml made tiny: 4 layers, hidden 64, 8 windows of 64 tokens a step, 6 + 4 steps."""
    tokens = corpus / "tokens"
    settings = {
        "data.tokenizer": corpus / "tokenizer",
        "data.datasets.code": tokens / "code",
        "data.datasets.docs": tokens / "docs",
        "data.held_out.code": tokens / "held_out" / "code",
        "data.held_out.docs": tokens / "held_out" / "docs",
        "data.sequence_length": 64,
        "data.stages.0.steps": 6,
        "data.stages.1.steps": 4,
        "train.output_dir": output_dir,
        "train.micro_batch_size": 2,
        "train.global_batch_size": 8,
        "train.precision": "fp32",
        "model.vocab_size": 1024,
        "model.hidden_size": 64,
        "model.ffn_hidden_size": 176,
        "optim.schedule.warmup_steps": 2,
        "optim.schedule.decay_steps": 4,
        "evaluation.windows": 8,
        "evaluation.every_steps": "null",
    }
    return [f"{name}={value}" for name, value in settings.items()]
