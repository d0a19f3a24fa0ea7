"""The `parallel:` section: how the ranks share the model."""

from typing import Literal

from pydantic import PositiveInt

from smol_config import Section

Recompute = Literal["none", "selective", "full"]


class ParallelConfig(Section):
    """How the ranks share the model; data parallelism takes what is left: world / (tensor * pipeline * context)."""

    tensor: PositiveInt = 1
    """Ranks that share every layer's matrices."""
    pipeline: PositiveInt = 1
    """Stages that share the layers."""
    virtual_pipeline: PositiveInt = 1
    """Model chunks of each stage: above 1 the pipeline is interleaved, which idles less and sends more."""
    context: PositiveInt = 1
    """Ranks that share a row's tokens; needs the te backend."""
    sequence: bool = False
    """Norms and residuals between tensor-parallel regions are split along the row as well."""
    overlap: bool = True
    """Gradients are reduced, parameters gathered and an interleaved pipeline's messages sent while other work runs."""
    recompute: Recompute = "none"
    """Activations computed again in the backward pass: those inside the MLPs (selective), or of whole layers (full)."""

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context

    @property
    def micro_batch_group(self) -> int:
        """A rank's micro-batches of a step come in whole groups of this many: an interleaved pipeline moves that many at a
        time through each chunk."""
        return self.pipeline if self.virtual_pipeline > 1 else 1
