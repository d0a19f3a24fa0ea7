"""Loss of a Hugging Face model on held-out token datasets: the same windows and targets as the trainer's evaluation.

The trainer packs documents into rows and keeps attention inside each; plain transformers has no such rows on every
attention implementation, so here each document of each window is a sequence of its own. The mean over targets is the same.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from smol_data.shards import TokenDataset


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, folder: str | Path, sequence_length: int, windows: int) -> tuple[float, int]:
    """(mean loss in nats, number of targets) over the first `windows` windows of `sequence_length` tokens in `folder`.

    `model` takes input ids [1, s], on its parameters' device, and returns an object with logits [1, s, vocabulary]. Targets
    that would cross a document's end are left out. Raises DataError when the dataset does not open.
    """
    dataset = TokenDataset(folder, sequence_length)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    total, targets = 0.0, 0
    try:
        for index in range(min(windows, dataset.num_windows)):
            window = dataset.window(index)
            ids = torch.from_numpy(window.tokens.astype(np.int64)).to(device)
            edges = sorted({0, *window.document_ends.tolist(), sequence_length})
            for first, end in itertools.pairwise(edges):
                crosses = end in window.document_ends  # then the label of the last token belongs to the next document
                tokens, labels = ids[first:end], ids[first + 1 : end + (0 if crosses else 1)]
                if not len(labels):
                    continue
                logits = model(input_ids=tokens[None]).logits[0, : len(labels)].float()
                total += float(cross_entropy(logits, labels, reduction="sum"))
                targets += len(labels)
    finally:
        dataset.close()
    return total / targets, targets
