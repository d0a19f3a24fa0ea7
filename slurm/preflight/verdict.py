"""Compares the nodes: which of them are bad, and what no other node would mend. Pure functions over what the steps left in OUT.

a node's "bad"       is the node's, unless most nodes have it: limits that fit no node would have all of them excluded
a node's "stop"      is of what all share, unless a node finds it right: a file system that one node has not mounted
no report, or half   the node did not start, crashed or hangs, and is bad as above
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slurm.preflight.findings import Finding, Report, read_findings, read_report
from slurm.preflight.network import PHASES

Findings = dict[str, dict[str, Finding]]
"""Node -> check -> finding."""


@dataclass(frozen=True)
class Verdict:
    """Of all nodes."""

    findings: Findings
    bad: list[str]
    """Nodes to be left out."""
    stops: bool

    def __str__(self) -> str:
        return "stop" if self.stops else f"bad {','.join(self.bad)}" if self.bad else "ok"


def decide(findings: Findings) -> Verdict:
    """The verdict, and the findings after the comparison."""
    checks = list(dict.fromkeys(check for of in findings.values() for check in of))
    compared: Findings = {node: {} for node in findings}
    for check in checks:
        for node, finding in _compare(check, {node: of[check] for node, of in findings.items() if check in of}).items():
            compared[node][check] = finding
    told = [(node, finding.verdict) for node, of in compared.items() for finding in of.values()]
    bad = [node for node in findings if (node, "bad") in told]
    return Verdict(compared, bad, any(word == "stop" for _, word in told))


def _compare(check: str, by_node: Mapping[str, Finding]) -> Mapping[str, Finding]:
    """One check over the nodes: whose fault is it?"""
    words = Counter(finding.verdict for finding in by_node.values())
    if words["stop"] and words["ok"]:
        return {node: replace(one, verdict="bad") if one.verdict == "stop" else one for node, one in by_node.items()}
    if words["bad"] > 1 and 2 * words["bad"] > len(by_node):
        note = f"{words['bad']} of {len(by_node)} nodes have it, so it is not a node's: "
        return {
            node: replace(one, verdict="stop", sentence=note + one.sentence) if one.verdict == "bad" else one
            for node, one in by_node.items()
        }
    return by_node


# --- what the steps left ---------------------------------------------------------------------------------------------------


def read_node_step(out: Path, nodes: Sequence[str]) -> Findings:
    """Of OUT/NODE.json, and of what had to be the same on all nodes."""
    reports = {node: read_report(out / f"{node}.json") if (out / f"{node}.json").exists() else None for node in nodes}
    found = {node: {"report": _completeness(report), **(report.findings if report else {})} for node, report in reports.items()}
    for fact in dict.fromkeys(fact for report in reports.values() if report for fact in report.facts):
        seen = {node: report.facts.get(fact, "none") for node, report in reports.items() if report}
        for node, finding in _sameness(fact, seen).items():
            found[node][fact] = finding
    return found


def _completeness(report: Report | None) -> Finding:
    if report is None:
        return Finding("bad", "none", "whole", "it wrote nothing: the step did not start there, or ended at once; see the log")
    if report.running is not None:
        return Finding("bad", f"ends in {report.running}", "whole", f"its check of {report.running} crashed or never ended")
    return Finding("ok", "whole", "whole")


def _sameness(fact: str, seen: Mapping[str, str]) -> dict[str, Finding]:
    """By node: what most nodes have is right; where there is no most, nobody knows, and the job stops."""
    [(usual, count), *_] = Counter(seen.values()).most_common()
    if 2 * count <= len(seen) and count < len(seen):
        sentence = f"{fact} differs ({'; '.join(f'{node}: {value}' for node, value in seen.items())}); make it the same"
        return {node: Finding("stop", value, "the same", sentence) for node, value in seen.items()}
    return {
        node: Finding("ok", value, "the same")
        if value == usual
        else Finding("bad", value, usual, f"{fact} is {value}, on other nodes {usual}; make it the same")
        for node, value in seen.items()
    }


def read_network_step(out: Path, nodes: Sequence[str]) -> Findings:
    """Of OUT/network.json; where that was not written, by how far the ranks of each node came."""
    path = out / "network.json"
    if path.exists():
        told = json.loads(path.read_text(encoding="utf8"))
        return {node: read_findings(told[node]) for node in nodes}
    reached: dict[str, list[int]] = {node: [] for node in nodes}
    for file in (out / "network").glob("rank_*.json"):
        rank = json.loads(file.read_text(encoding="utf8"))
        reached[rank["node"]].append(rank["phase"])
    phases = {node: min(of, default=-1) for node, of in reached.items()}
    furthest, alike = max(phases.values()), len(set(phases.values())) == 1
    return {node: {"network": _came_to(phase, bad=alike or phase < furthest)} for node, phase in phases.items()}


def _came_to(phase: int, bad: bool) -> Finding:
    """Of the node whose ranks are behind the others'. Where all are at one place it is bad on all, which is to say on none."""
    name = PHASES[phase] if phase >= 0 else "did not start"
    sentence = f"the ranks ended or hung after '{name}'; see the log and OUT/network"
    return Finding("bad", name, PHASES[-1], sentence) if bad else Finding("ok", name, PHASES[-1])
