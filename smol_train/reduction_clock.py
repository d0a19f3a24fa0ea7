"""How long the reduction of the gradients takes, with which every backward pass ends.

    data wait | forward and backward ....................... | reduction ........... | norm, clipping, update
              a rank's own work, and what the ranks that       the copies of the model
              share a copy of the model wait for one another   wait for the slowest of them

With collectives, all ranks' steps are as long as the slowest one's. What comes before the reduction is a copy's own time: there
a slow one shows; the others show it as a long reduction.
"""

import time
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig


class ReductionClock:
    """Takes the place of a configuration's `finalize_model_grads_func`, calls it and times it.

    On the CPU by the host's clock. On a GPU by events in the stream that computes, so that nobody waits for the device; there
    `seconds` may be read once the step has waited for it.
    """

    def __init__(self, config: TransformerConfig, device: torch.device) -> None:
        self.finalize: Any = config.finalize_model_grads_func
        config.finalize_model_grads_func = self
        self.on_gpu = device.type == "cuda"
        self.marks: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self.on_gpu else [0.0, 0.0]

    def __call__(self, *arguments: Any, **named: Any) -> None:
        self._mark(0)
        self.finalize(*arguments, **named)
        self._mark(1)

    @property
    def seconds(self) -> float:
        """Of the last backward pass."""
        begin, end = self.marks
        return float(begin.elapsed_time(end)) / 1000 if self.on_gpu else end - begin

    def _mark(self, which: int) -> None:
        if self.on_gpu:
            self.marks[which].record()
        else:
            self.marks[which] = time.perf_counter()
