"""`isolation`: documents of a packed row do not see each other, in the attention that training takes.

The configuration's model in its wrappers and its tensor and context parallelism, on one pipeline stage; a row of random
tokens whose documents' borders are known; smol_train.step's forward step. Two questions, and a control:

    changed    other tokens in one document: no other document's losses change, in any bit
    alone      each document in a row of its own: the same losses up to rounding
    control    the same row without document borders: documents do see each other, or the two answers are worth nothing

Weights are drawn for the purpose, matrices with standard deviation 1/sqrt(columns): at initialisation attention is so even
that a leak would be hard to see. Rows of other lengths are multiplied in other blocks, hence the rounding: `alone` may differ
by at most ALONE of a loss of about 10, and the control has to differ by ten times that.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smol_data.batch import ContextRank, PackedBatch, context_part, pack
from smol_data.shards import Window
from smol_train.config import RunConfig
from smol_train.memory import Precision
from smol_train.selftests.base import Setting, Verdict, verdict

ALONE: dict[Precision, float] = {"fp32": 1e-3, "bf16": 0.1}
"""Nats. Seen: fp32 2e-5, bf16 0.04."""
WINDOWS = 2

Borders = list[int]
"""Documents of a row: [0, end of the first, ..., tokens of the row]."""


def check(setting: Setting) -> Verdict:
    config = setting.config
    parallel = config.parallel.model_copy(update={"pipeline": 1, "virtual_pipeline": 1})
    config = config.model_copy(update={"parallel": parallel})
    found = setting.crew.run(probe, parallel.model_ranks, config=config, seed=setting.seed)
    first, precision = found[0], config.train.precision
    alone, control = max(one["alone"] for one in found), max(one["control"] for one in found)
    faults = []
    leaks = sorted({(changed, seen) for one in found for changed, seen in one["leaks"]})
    if not config.data.document_mask:
        faults.append("data.document_mask=false: documents of a window see each other by configuration")
    elif leaks:
        changed, seen = leaks[0]
        faults.append(f"other tokens in document {changed} change the losses of document {seen} ({len(leaks)} such pairs)")
    if alone > ALONE[precision] and config.data.document_mask:
        faults.append(f"losses differ by {alone:.2g} from those of each document alone; allowed {ALONE[precision]:g}")
    if not any(one["control_leaks"] for one in found) or control < 10 * ALONE[precision]:
        faults.append(
            f"blind: without document borders losses differ by {control:.2g} only, so that this check would see no leak"
        )
    summary = (
        f"{first['documents']} documents, {first['backend']} backend, {precision}: a change stays in its document bit for bit; "
        f"alone, losses are the same to {alone:.1e} (without borders {control:.1f})"
    )
    return verdict(faults, summary, alone=alone, control=control, leaks=leaks, backend=first["backend"])


def probe(config: RunConfig, seed: int) -> dict[str, Any]:
    """A job: what one document's tokens do to the losses of the others."""
    from smol_model.spec import resolve_backend
    from smol_train.model import build_chunks, unwrap
    from smol_train.parallel import process_groups

    with process_groups(config.parallel, config.train.seed) as ranks:
        [model] = build_chunks(config)
        model.train()
        with torch.no_grad():
            _spread(unwrap(model), seed + ranks.rank)
            found = _compare(model, _Rows(config, ranks.context, ranks.device, seed), config.data.document_mask)
    return {**found, "backend": resolve_backend(config.train.backend)}


def _compare(model: Any, rows: "_Rows", mask: bool) -> dict[str, Any]:
    before = rows.losses(model, document_mask=mask)
    documents = range(len(before))
    changes = [_differing(before, rows.losses(model, each, mask)) for each in documents]
    open_borders = rows.losses(model, document_mask=False)
    reached = _differing(open_borders, rows.losses(model, 0, document_mask=False))
    alone = torch.cat([rows.losses_alone(model, each) for each in documents])
    return {
        "documents": len(documents),
        "leaks": [[changed, seen] for changed, others in enumerate(changes) for seen in others if seen != changed],
        "alone": (torch.cat(before) - alone).abs().max().item(),
        "control": (torch.cat(open_borders) - alone).abs().max().item(),
        "control_leaks": [seen for seen in reached if seen != 0],
    }


def _differing(before: list[Tensor], after: list[Tensor]) -> list[int]:
    """The documents whose losses differ in any bit."""
    pairs = enumerate(zip(before, after, strict=True))
    return [document for document, (one, other) in pairs if not torch.equal(one, other)]


def _spread(network: torch.nn.Module, seed: int) -> None:
    """Matrices with standard deviation 1/sqrt(columns). Norms, which ranks share, stay as they are."""
    for number, parameter in enumerate(network.parameters()):
        if parameter.dim() > 1:
            generator = torch.Generator().manual_seed(seed + 1000 * number)
            drawn = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
            parameter.copy_(drawn)


class _Rows:
    """A row of windows with known documents, and its losses by document on this rank."""

    def __init__(self, config: RunConfig, context: ContextRank, device: torch.device, seed: int) -> None:
        self.context, self.device = context, device
        self.length, self.vocabulary = config.data.sequence_length, config.model.vocab_size
        # A row of a single document must divide by what the layout divides rows by.
        self.unit = context.multiple * (config.parallel.tensor if config.parallel.sequence else 1)
        inside = _documents(self.length, self.unit)
        self.borders = [window * self.length + at for window in range(WINDOWS) for at in inside[:-1]] + [WINDOWS * self.length]
        self.ends = np.array(inside[1:-1], dtype=np.int32)
        # The token behind a window is no document's: changed, it would change the target of another one.
        self.tokens = np.random.default_rng(seed).integers(0, self.vocabulary, (WINDOWS, self.length + 1))

    def losses(self, model: Any, changed: int | None = None, document_mask: bool = True) -> list[Tensor]:
        tokens = self.tokens.copy()
        if changed is not None:
            window, mine = self._place(changed)
            tokens[window, mine] = (tokens[window, mine] + 1) % self.vocabulary
        windows = [Window(row, self.ends) for row in tokens]
        return self._forward(model, pack(windows, document_mask, multiple=self.context.multiple).expand(), self.borders)

    def losses_alone(self, model: Any, document: int) -> Tensor:
        window, mine = self._place(document)
        row = pack([Window(self.tokens[window, mine.start : mine.stop + 1], np.empty(0, dtype=np.int32))]).expand()
        if mine.stop < self.length:  # the target behind it is another document's, which the packed row leaves out
            row.loss_mask[0, -1] = 0.0
        [losses] = self._forward(model, row, [0, mine.stop - mine.start])
        return losses

    def _place(self, document: int) -> tuple[int, slice]:
        """Its window and its tokens there."""
        begin, end = self.borders[document : document + 2]
        window = begin // self.length
        return window, slice(begin - window * self.length, end - window * self.length)

    def _forward(self, model: Any, batch: PackedBatch, borders: Borders) -> list[Tensor]:
        """Losses of this rank's tokens by document, masked targets 0."""
        from smol_train.step import forward_step

        total = batch.tokens.shape[1]
        numbers = torch.repeat_interleave(torch.arange(len(borders) - 1), torch.tensor(borders).diff())[None]
        assert numbers.shape[1] == total
        if self.context.size > 1:
            numbers = context_part(replace(batch, labels=numbers), self.context).labels
            batch = context_part(batch, self.context)
        batch = _on(batch, self.device)
        output, _ = forward_step(iter([batch]), model)
        losses = (output[0].float() * batch.loss_mask[0]).cpu()
        return [losses[numbers[0] == document] for document in range(len(borders) - 1)]


def _documents(length: int, unit: int) -> Borders:
    """Borders inside a window: a third of it, one as short as can be, a sixteenth, the rest."""
    units = length // unit
    ends = sorted({end for end in (units // 3, units // 3 + 1, units // 3 + 1 + units // 16) if 0 < end < units})
    return [0, *(end * unit for end in ends), length]


def _on(batch: PackedBatch, device: torch.device) -> PackedBatch:
    tensors: dict[str, Any] = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **tensors)
