"""What every check takes and gives: where it runs, and its verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from smol_config import Section
from smol_train.config import RunConfig

Outcome = Literal["passed", "failed", "skipped"]


class Verdict(Section):
    """What one check found."""

    outcome: Outcome
    """skipped: it was not done. Nothing that was not done is ever called passed."""
    summary: str
    """One sentence with the figures; for skipped, the reason."""
    details: list[str] = Field(default_factory=list)
    """What was compared with what, a line each."""
    figures: dict[str, Any] = Field(default_factory=dict)
    """For the report."""


class JobError(Exception):
    """A job failed on some rank; the message is the first failing rank's."""


class Crew(Protocol):
    """Processes that run jobs as ranks. Every job gets a world of its own."""

    def run(self, job: Callable[..., Any], world_size: int, **arguments: Any) -> list[Any]:
        """Run a module-level function on ranks 0 to world_size - 1; gives each rank's result. Raises JobError."""

    def run_killed(self, job: Callable[..., Any], world_size: int, **arguments: Any) -> None:
        """The same for a job that ends in `kill -9` on every rank. Raises JobError where a rank ended in another way."""


@dataclass(frozen=True)
class Setting:
    """Where a check runs."""

    config: RunConfig
    """The user's, which the world fits."""
    crew: Crew
    world_size: int
    """Ranks at hand."""
    folder: Path
    """On storage that all ranks see; the check's own, and gone after it."""
    steps: int
    """Of a short run."""
    seed: int
    """Of what a check draws by chance."""


def verdict(faults: Sequence[str], summary: str, details: Sequence[str] = (), **figures: Any) -> Verdict:
    """passed with `summary`, or failed with the faults."""
    if faults:
        return Verdict(outcome="failed", summary="; ".join(faults), details=list(details), figures=figures)
    return Verdict(outcome="passed", summary=summary, details=list(details), figures=figures)


def skipped(reason: str) -> Verdict:
    return Verdict(outcome="skipped", summary=reason)
