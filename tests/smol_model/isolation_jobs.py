"""What ranks of the test pool do to see which documents of a row reach which others, in the path that training takes:
the model as the trainer builds it, in train mode, and smol_train.step's forward step over a packed batch."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from model_jobs import fill, logits_of, row, tiny, windows
from torch import Tensor

from smol_data.batch import PackedBatch

LENGTHS = [[11, 4, 17], [1, 30, 1], [32]]
"""Documents of three windows of 32 tokens; each window's last document goes on in the next window."""

DOCUMENTS = [length for window in LENGTHS for length in window]


@contextlib.contextmanager
def training_model(tensor: int, sequence: bool, precision: Any) -> Iterator[Any]:
    """The network in its wrappers, in train mode."""
    from smol_data.config import DataConfig, StageConfig
    from smol_train.config import RunConfig
    from smol_train.model import build_chunks, unwrap
    from smol_train.parallel import process_groups
    from smol_train.sections.layout import ParallelConfig
    from smol_train.sections.optim import OptimConfig
    from smol_train.sections.run import TrainConfig

    config = RunConfig(
        model=tiny(),
        parallel=ParallelConfig(tensor=tensor, sequence=sequence, overlap=False),
        data=DataConfig(
            tokenizer="none",
            sequence_length=32,
            datasets={"a": "none"},
            stages=[StageConfig(name="s", steps=1, weights={"a": 1})],
        ),
        optim=OptimConfig(learning_rate=1e-3),
        train=TrainConfig(output_dir="none", global_batch_size=3, micro_batch_size=3, precision=precision, backend="torch"),
    )
    with process_groups(config.parallel, config.train.seed):
        [model] = build_chunks(config)
        fill(unwrap(model.train()))
        yield model


def by_document(values: Tensor) -> list[Tensor]:
    """[t, ...] -> one tensor for each document."""
    return list(values.split(DOCUMENTS))


def losses_of(model: Any, batch: PackedBatch) -> Tensor:
    """[t], masked targets 0; from the step that the trainer runs."""
    from smol_train.step import forward_step

    losses, _ = forward_step(iter([batch]), model)
    return losses[0] * batch.loss_mask[0]


def reached(document_mask: bool = True, tensor: int = 1, sequence: bool = False, precision: str = "fp32") -> dict[str, list]:
    """For "logits" and "losses", by the document that was changed: the documents in which any bit differs."""
    found: dict[str, list] = {"logits": [], "losses": []}
    with training_model(tensor, sequence, precision) as model:

        def outputs(changed: int | None) -> dict[str, list[Tensor]]:
            batch = row(windows(LENGTHS, changed=changed), document_mask)
            return {"logits": by_document(logits_of(model, batch)), "losses": by_document(losses_of(model, batch).detach())}

        before = outputs(None)
        for changed in range(len(DOCUMENTS)):
            after = outputs(changed)
            for name in found:
                pairs = enumerate(zip(before[name], after[name], strict=True))
                found[name].append([at for at, (one, other) in pairs if not torch.equal(one, other)])
    return found


def gradients_reach(document_mask: bool = True, tensor: int = 1, sequence: bool = False, precision: str = "fp32") -> list:
    """By the document whose loss is taken: the documents whose input embeddings get any gradient but exact zeros."""
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    from smol_train.model import unwrap

    found = []
    with training_model(tensor, sequence, precision) as model:
        embedded: list[Tensor] = []
        unwrap(model).embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
        for document in range(len(DOCUMENTS)):  # a forward pass each: the cross entropy's backward works in place
            embedded.clear()
            losses = losses_of(model, row(windows(LENGTHS), document_mask))
            [gradient] = torch.autograd.grad(by_document(losses)[document].sum(), embedded)
            whole = gather_from_sequence_parallel_region(gradient) if sequence else gradient
            found.append([at for at, part in enumerate(by_document(whole)) if part.any()])
    return found


def packed_against_alone() -> dict[str, float]:
    """Largest differences of a packed row's logits from those of each document in a row of its own, and, as a control,
    from those of a row whose documents see the ones before them; and the mean size of a logit."""
    made = windows(LENGTHS)
    tokens = torch.cat([torch.from_numpy(window.tokens[:-1]) for window in made])
    with training_model(1, False, "fp32") as model:
        packed = logits_of(model, row(made))
        alone = torch.cat([logits_of(model, single(document)) for document in by_document(tokens)])
        open_borders = logits_of(model, row(made, document_mask=False))
    return {
        "alone": (packed - alone).abs().max().item(),
        "control": (packed - open_borders).abs().max().item(),
        "size": packed.abs().mean().item(),
    }


def single(tokens: Tensor) -> PackedBatch:
    """A row that holds one document."""
    length = len(tokens)
    borders, places = torch.tensor([0, length], dtype=torch.int32), torch.arange(length)[None]
    number = torch.zeros(1, dtype=torch.int32)
    return PackedBatch(tokens[None], tokens[None], torch.ones(1, length), places, borders, length, number)


def same_window(documents: Sequence[Sequence[int]] = LENGTHS) -> list[int]:
    """The window of each document."""
    return [window for window, inside in enumerate(documents) for _ in inside]
