"""The `spikes:` section: what counts as a loss spike and what is done about it."""

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from smol_config import Section


class SpikesConfig(Section):
    """A step is a spike when its loss or gradient norm, before the update, stands out above those of the steps before.

    One spike: the update is left out. Several in a row: the run goes back to the checkpoint before the first, passes over the
    samples of all of them and clips harder for a while.
    """

    sigma: NonNegativeFloat = 6.0
    """Standard deviations above the window's mean from which a step is a spike; 0 switches all of this off but for NaN and
    Inf, whose updates are always left out."""
    window: PositiveInt = 128
    """Steps that are the standard: the latest that were no spikes. A new stage begins a new window."""
    least_window: PositiveInt = 32
    """Steps that a window must hold before it judges."""
    least_rise: PositiveFloat = 0.02
    """A spike of the loss also stands out by at least this share of the window's mean: a very even run has a very small
    deviation. 0.02 is 0.05 nats at a loss of 2.3 (docs/results/spike_detection.md)."""
    least_norm_rise: PositiveFloat = 2.0
    """The same for the gradient norm, of which single steps of twice the mean are usual, and clipped."""
    rollback_after: NonNegativeInt = 10
    """Spikes in a row that make the run go back; 0: it never does."""
    margin_steps: NonNegativeInt = 10
    """Global batches before the first and after the last spike that are passed over as well."""
    max_rollbacks: PositiveInt = 3
    """In a row; one more and the run stops (exit 93). Each starts one checkpoint further back than the one before."""
    calm_steps: PositiveInt = 1000
    """Steps without a rollback after which the next one is the first in a row again."""
    clip_factor: float = Field(default=0.5, gt=0, le=1)
    """After a rollback optim.clip_grad_norm is multiplied by this ..."""
    clip_steps: NonNegativeInt = 200
    """... for this many steps."""
    documents: NonNegativeInt = 200
    """Documents of a range passed over that are decoded into RUN/spikes, at most."""

    def problems(self) -> list[str]:
        if self.least_window > self.window:
            return [f"least_window={self.least_window} is above window={self.window}, so nothing is ever judged; lower it"]
        return []
