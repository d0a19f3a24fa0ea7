"""The `parallel:` section: how the ranks share the model."""

from pydantic import PositiveInt

from smol_config import Section


class ParallelConfig(Section):
    """How the ranks share the model; data parallelism takes what is left: world / (tensor * pipeline * context)."""

    tensor: PositiveInt = 1
    """Ranks that share every layer's matrices."""
    pipeline: PositiveInt = 1
    """Stages that share the layers."""
    context: PositiveInt = 1
    """Ranks that share a row's tokens; needs the te backend."""
    sequence: bool = False
    """Norms and residuals between tensor-parallel regions are split along the row as well."""
    overlap: bool = True
    """Gradients are reduced and parameters gathered while the backward and forward passes run."""

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context
