"""Which steps are spikes, judged before their update from numbers that all ranks know: so all ranks decide alike.

    (loss, gradient norm) of a step  --SpikeMonitor.judge-->  Verdict: update or not, go back or not

What is "usual" is the mean and the standard deviation of the latest steps that were no spikes. The monitor's window is stored
with every checkpoint (`TrainState.monitor`), so that a resumed run judges as an uninterrupted one would. Pure; no torch.
"""

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from smol_train.sections.spikes import SpikesConfig


@dataclass(frozen=True)
class Verdict:
    """What to do with the step that was judged."""

    update: bool = True
    """Apply its gradients."""
    roll_back: bool = False
    """The spike persists: go back to before it."""
    reason: str = ""
    """What stood out, in words; empty when nothing did."""


@dataclass
class SpikeMonitor:
    """The window of usual steps and the spike in progress, if any."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    stage: str = ""
    spiking: int = 0
    """Spikes in a row up to the last step."""
    first_step: int = 0
    """Steps done before the first of them."""

    def judge(self, config: SpikesConfig, stage: str, step: int, loss: float, norm: float) -> Verdict:
        """Judge the step that follows `step` done ones, from its loss and its gradient norm before clipping."""
        if stage != self.stage:  # another mixture has another usual loss
            self.losses, self.norms, self.stage = [], [], stage
        reason = self._stands_out(config, loss, norm)
        if not reason:
            self.spiking = 0
            self.losses = [*self.losses, loss][-config.window :]
            self.norms = [*self.norms, norm][-config.window :]
            return Verdict()
        if not self.spiking:
            self.first_step = step
        self.spiking += 1
        return Verdict(False, 0 < config.rollback_after <= self.spiking, reason)

    def accept(self) -> None:
        """Take the present level for the usual one: where there is nothing to go back to, leaving out every update would
        end the training."""
        self.losses, self.norms, self.spiking = [], [], 0

    def _stands_out(self, config: SpikesConfig, loss: float, norm: float) -> str:
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                return f"{name} {value}"
        if not config.sigma or len(self.losses) < config.least_window:
            return ""
        for name, value, window, rise in (
            ("loss", loss, self.losses, config.least_rise),
            ("gradient norm", norm, self.norms, config.least_norm_rise),
        ):
            mean = statistics.fmean(window)
            deviation = statistics.pstdev(window, mean)
            if value > mean + max(config.sigma * deviation, rise * abs(mean)):
                sigmas = f"{(value - mean) / deviation:.1f} standard deviations" if deviation else "above a constant window"
                return f"{name} {value:.4g} ({sigmas} from the mean {mean:.4g} of {len(window)} steps)"
        return ""

    def state(self) -> dict[str, Any]:
        """As JSON takes it; `SpikeMonitor(**state)` goes on from there."""
        return asdict(self)
