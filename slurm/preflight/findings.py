"""What a check says, what checks know of their node, and how they run tools. Every other file of the package uses this one."""

import functools
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slurm.preflight.limits import Limits
from smol_config import UserError
from smol_files import write_json
from smol_train.config import RunConfig

if TYPE_CHECKING:
    from slurm.preflight.speed import Load

TOOL_SECONDS = 120.0
"""A tool that has not answered by then is taken as hung, which is what a sick driver does to nvidia-smi."""

Word = Literal["ok", "bad", "skipped", "stop"]


@dataclass(frozen=True)
class Finding:
    """What came of one check on one node."""

    verdict: Word
    """bad: the node is to be left out. stop: something that all nodes share is wrong; where others do not find it so, it is the
    node after all (verdict.py). skipped: nothing was looked at, and the sentence says why."""
    value: str = ""
    """What was found, with its unit."""
    want: str = ""
    sentence: str = ""


class Absent(Exception):
    """What a check needs is not here, so it is skipped."""


class Fault(UserError):
    """What a check found wrong with the node."""


@dataclass
class Node:
    """What the checks of a node know."""

    name: str
    limits: Limits
    training: RunConfig | None
    """Of the run; None: it is none of pre-training."""
    run: Path
    """Its folder, which all nodes share."""
    ranks: int
    """Of the whole job."""
    gpus: int
    """That the job asks for on a node."""
    scratch: Path | None = None
    """On the node's own disk; None: it has none."""
    source: str = ""
    """From where data come to it: a folder, s3://bucket/prefix, or nothing."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where matrices are multiplied; cpu is for trying that out."""

    @property
    def config(self) -> RunConfig:
        """What the checks of data, space and access go by; raises Absent where there is none."""
        if self.training is None:
            raise Absent("the job is none of pre-training")
        return self.training

    @functools.cached_property
    def load(self) -> "Load":
        """The GPUs at work, measured by the first check that asks."""
        from slurm.preflight.speed import measure

        if self.device == "cuda" and not self.gpus:
            raise Absent("the job asks for no GPUs")
        return measure(self)


Check = Callable[[Node], Finding]


def run_tool(program: str, *arguments: str, seconds: float = TOOL_SECONDS) -> subprocess.CompletedProcess[str]:
    """What it printed and how it ended. Raises Absent where it is not installed, Fault where it gives no answer."""
    if not shutil.which(program):
        raise Absent(f"{program} is not installed")
    try:
        return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise Fault(f"{program} gave no answer in {seconds:.0f} s; restart the node") from None


def judged(value: float, unit: str, least: float | None = None, most: float | None = None, fault: str = "") -> Finding:
    """Ok or bad by a limit; `fault` is the sentence for bad. A limit of None is not judged."""
    shown = f"{value:.4g} {unit}"
    want = f">= {least:.4g}" if least is not None else f"<= {most:.4g}" if most is not None else ""
    bad = (least is not None and value < least) or (most is not None and value > most)
    return Finding("bad" if bad else "ok", shown, want, fault if bad else "")


# --- what a node leaves for the verdict ------------------------------------------------------------------------------------


@dataclass
class Report:
    """A node's JSON. It is written anew before every check, so that one that hangs is known."""

    node: str
    facts: dict[str, str] = field(default_factory=dict)
    """That must be the same on all nodes."""
    findings: dict[str, Finding] = field(default_factory=dict)
    """By check."""
    running: str | None = None
    """The check that was under way; None: all are done."""

    def write(self, out: Path) -> None:
        """OUT/NODE.json, replaced in one step."""
        results = [{"check": check, **asdict(finding)} for check, finding in self.findings.items()]
        told = {"node": self.node, "running": self.running, "facts": self.facts, "results": results}
        write_json(out / f"{self.node}.json", told)


def read_report(path: Path) -> Report:
    """What Report.write wrote."""
    told = json.loads(path.read_text(encoding="utf8"))
    return Report(told["node"], told["facts"], read_findings(told["results"]), told["running"])


def read_findings(results: list[dict[str, Any]]) -> dict[str, Finding]:
    """By check."""
    return {one["check"]: Finding(**{name: one[name] for name in one if name != "check"}) for one in results}
