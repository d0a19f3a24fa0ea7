"""The other side of benchmarks.train_step: the same model in plain transformers with torch.optim.AdamW.

The windows come from the same loader in the same order, as [b, S] rows instead of one packed row; learning rates, clipping,
weight decay, micro-batches and initial weights are the same. As in transformers' own Trainer, a step's micro-batches
are fetched first, so that the loss is the mean over the targets of the whole step. Parameters are fp32 under bf16 autocast
(train.precision bf16), or fp32 throughout. Loads nothing of Megatron-Core.
"""

import fnmatch
import importlib.util
import sys
import time
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.train_step_job import Job, Measurement, serve
from conversion.families import SpecialIds, to_huggingface
from conversion.weights import weight_table
from smol_config import load
from smol_data.batch import PackedBatch
from smol_data.loader import TrainLoader
from smol_data.schedule import batch_at, resolve_segments, total_steps
from smol_train.config import RunConfig
from smol_train.schedule import learning_rate

IGNORED = -100
"""Label that transformers' loss leaves out."""


def measure(job: Job) -> Measurement:
    """Train warm-up and timed steps; on a GPU without the memory for it, says so in `skipped`."""
    config = load(RunConfig, job.config, job.overrides)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        return _train(job, config, device)
    except torch.OutOfMemoryError:
        return Measurement(name="transformers", skipped="plain transformers does not fit into the GPU's memory at this size")


def _train(job: Job, config: RunConfig, device: torch.device) -> Measurement:
    data, train = config.data, config.train
    segments = resolve_segments(data.stages, data.sequence_length, train.global_batch_size, data.skip_samples, [])
    loader = TrainLoader(
        data, segments, train.micro_batch_size, rank=0, world_size=1, device=device, vocab_size=config.model.vocab_size
    )
    attention = _attention(device)
    model = build_model(config, job.weights, device, attention)
    optimizer = build_optimizer(config, model)
    result = Measurement(name=f"transformers, {attention} attention, torch.optim.AdamW(fused=True)")
    last = time.perf_counter()
    for step in range(job.warmup + job.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, total_steps(segments), step + 1)
        started = time.perf_counter()
        batches = [next(loader) for _ in range(batch_at(segments, step).batch_size // train.micro_batch_size)]
        fetched = time.perf_counter()
        optimizer.zero_grad()
        loss = _forward_backward(model, batches, data.sequence_length, device, train.precision == "bf16")
        if device.type == "cuda":
            torch.cuda.synchronize()
        passed = time.perf_counter()
        if config.optim.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad_norm)
        optimizer.step()
        result.losses.append(loss.item())
        if device.type == "cuda":
            torch.cuda.synchronize()
        ended = time.perf_counter()
        if step >= job.warmup:
            result.add(ended - last, fetched - started, passed - fetched, ended - passed)
        last = ended
    loader.close()
    return result


def _forward_backward(
    model: Any, batches: list[PackedBatch], length: int, device: torch.device, autocast: bool
) -> torch.Tensor:
    """Gradients and mean loss of a step."""
    targets = torch.stack([batch.loss_mask.sum() for batch in batches]).sum()
    total = torch.zeros((), device=device)
    for batch in batches:
        labels = batch.labels.masked_fill(batch.loss_mask == 0, IGNORED).view(-1, length)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            output = model(
                input_ids=batch.tokens.view(-1, length),
                labels=labels,
                shift_labels=labels,  # the loader's labels are the next tokens already
                num_items_in_batch=targets,
                use_cache=False,
            )
        output.loss.backward()
        total += output.loss.detach()
    return total


def build_model(config: RunConfig, weights: str, device: torch.device, attention: str) -> Any:
    """The architecture in transformers with our initial weights, in fp32."""
    import transformers

    fields = to_huggingface(config.model, SpecialIds(None, None, None), config.data.sequence_length, "float32")
    hf_config = transformers.AutoConfig.for_model(**fields)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(hf_config, attn_implementation=attention, dtype=torch.float32)
    missing, unexpected = model.load_state_dict(load_file(weights, device=str(device)), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)  # a tied head is the embedding
    return model.train()


def build_optimizer(config: RunConfig, model: Any) -> torch.optim.AdamW:
    """AdamW whose weight decay leaves out what ours leaves out."""
    optim, parameters = config.optim, dict(model.named_parameters())
    exempt = {
        name
        for weight in weight_table(config.model)
        if any(fnmatch.fnmatchcase(weight.megatron, pattern) for pattern in optim.no_weight_decay)
        for name in weight.huggingface
    }
    groups = [
        {"params": [p for name, p in parameters.items() if name not in exempt], "weight_decay": optim.weight_decay},
        {"params": [p for name, p in parameters.items() if name in exempt], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.learning_rate,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )


def _attention(device: torch.device) -> str:
    flash = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if flash else "sdpa"


if __name__ == "__main__":
    sys.exit(serve(measure))
