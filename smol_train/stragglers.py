"""Which rank is slow, and why: judged on tables of all ranks' seconds a step.

With collectives every rank's step is as long as the slowest one's, so the step's length says nothing about who. These parts do:

    data_wait        waiting for the loader; no collective in it, so it is a rank's own
    compute          forward and backward up to the gradient reduction: its own, and what the ranks that share one copy of the
                     model (tensor, context, pipeline) wait for one another; so within a copy it names all of them
    between_steps    callbacks: logging, evaluating, saving; a rank's own is what it takes longer than the quickest one
    reduction        gradient reduction: communication, and waiting for slower copies
    optimizer        norm, clipping, update: communication as well

A loss of speed is put down to the first of data_wait, compute and between_steps, in this order, that grew by at least half of
what the step grew by. Where none did, nobody was late, and communication itself is what grew. Data comes first because a rank
that waits for data makes the others of its copy wait in their compute.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PARTS = ("data_wait", "compute", "reduction", "optimizer", "between_steps")
OWN = {"data_wait": "data wait", "compute": "compute", "between_steps": "time between steps (logging, saving)"}
"""Parts in which a rank itself can be late, in the order in which they are looked at, and how they are told."""
IN_STEP = [PARTS.index(part) for part in ("data_wait", "compute", "reduction", "optimizer")]

KNOWN_WINDOWS = 3
"""Windows before a median is trusted."""
REMEMBERED_WINDOWS = 200

Table = NDArray[np.float64]
"""[ranks, len(PARTS)]: mean seconds a step, over one window of steps."""


def step_seconds(table: Table) -> float:
    """Length of a step, callbacks left out; the same on all ranks but for rounding, or nearly so."""
    return float(np.median(table[:, IN_STEP].sum(1)))


def slowest(table: Table) -> int:
    """The rank that took longest to come to the gradient reduction."""
    return int((table[:, PARTS.index("data_wait")] + table[:, PARTS.index("compute")]).argmax())


@dataclass(frozen=True)
class Cause:
    """What made a step longer than it used to be."""

    part: str
    """One of OWN, or `communication`."""
    ranks: list[int]
    """Those that were late; empty where all were alike."""
    seconds: float
    """A step, by which it grew where it grew most."""


def cause(now: Table, usual: Table) -> Cause:
    """Compare a window's table with the usual one."""
    grown = now - usual
    longer = step_seconds(now) - step_seconds(usual)
    for part in OWN:
        growth = grown[:, PARTS.index(part)]
        if part == "between_steps":
            growth = growth - growth.min()  # evaluating and saving, which all do, is no loss of speed
        if growth.max() >= longer / 2:
            late = np.flatnonzero(growth >= growth.max() / 2).tolist()
            return Cause(part, late if len(late) < len(growth) or len(growth) == 1 else [], float(growth.max()))
    return Cause("communication", [], longer)


class ThroughputWatch:
    """Follows the windows of a run; says when throughput has fallen for good and when it is back.

    `drop` is the share of the run's median throughput that must be lost, `windows` for how many windows in a row. Windows that
    are slow are not added to what is usual, so a loss that lasts does not become the rule.
    """

    def __init__(self, drop: float, windows: int) -> None:
        self.drop = drop
        self.usual: deque[Table] = deque(maxlen=REMEMBERED_WINDOWS)
        self.slow: deque[Table] = deque(maxlen=windows)
        """The latest windows, where they are slow."""
        self.fallen = False
        """Throughput is low, and that was said."""

    def forget(self) -> None:
        """Begin anew: steps are of another size now."""
        self.usual.clear()
        self.slow.clear()
        self.fallen = False

    def share(self, table: Table) -> float | None:
        """Throughput as a share of the run's median; None while that is not known."""
        if len(self.usual) < KNOWN_WINDOWS:
            return None
        return step_seconds(self._typical()) / step_seconds(table)

    def add(self, table: Table) -> Cause | None:
        """The cause, once, when throughput has been low for long enough."""
        share = self.share(table)
        if share is None or share > 1 - self.drop:
            self.usual.append(table)
            self.slow.clear()
            self.fallen = False
            return None
        self.slow.append(table)
        if self.fallen or len(self.slow) < (self.slow.maxlen or 1):
            return None
        self.fallen = True
        return cause(np.mean(self.slow, axis=0), self._typical())

    def _typical(self) -> Table:
        typical: Any = np.median(self.usual, axis=0)
        return np.asarray(typical)
