"""The table of a preflight: a line for every check and value, with what SmolLM3's makers measured beside it."""

from collections.abc import Sequence

from slurm.preflight.verdict import Findings
from smol_console import table

REFERENCE = {
    "gemm": "714-758 TFLOP/s",
    "memory bandwidth": "about 3000 GB/s",
    "scratch": "28.5 GB/s",
    "shared": "1.2-4.5 GB/s",
    "fio": "337000 IOPS",
    "all-reduce in node": "480 GB/s",
    "all-reduce in pairs": "479 GB/s",
    "all-reduce over all": "320-350 GB/s",
    "transport": "EFA, NVLink",
}
"""On 48 nodes of 8 H100 (AWS p5), from the Smol Training Playbook (Hugging Face, 2025), chapter on infrastructure: bf16 GEMM;
HBM3; the nodes' NVMe RAID by fio, 26.59 GiB/s; FSx, 1.13 (Lustre) to 4.21 GiB/s (Weka); random reads of the RAID; bus bandwidth
of all-reduces in one node, over two, over 3 to 16. One throttled GPU took the last from 350 down to 100."""


def render(findings: Findings) -> str:
    """Nodes that found the same share a line. Below: why checks were skipped, and what is to be done about the others."""
    rows = []
    reasons: dict[str, list[str]] = {}
    remedies: dict[tuple[str, str, str], list[str]] = {}
    for check in dict.fromkeys(check for of in findings.values() for check in of):
        alike: dict[tuple[str, str, str], list[str]] = {}
        for node, of in findings.items():
            if (one := of.get(check)) is None:
                continue
            alike.setdefault((one.verdict, one.value, one.want), []).append(node)
            if one.verdict == "skipped":
                reasons.setdefault(one.sentence, []).append(check)
            elif one.verdict != "ok":
                remedies.setdefault((one.verdict, check, one.sentence), []).append(node)
        for (verdict, value, want), nodes in alike.items():
            rows.append([check, _names(nodes, len(findings)), verdict, value, want, REFERENCE.get(check, "")])
    skipped = [f"skipped, {reason}: {', '.join(dict.fromkeys(checks))}" for reason, checks in reasons.items()]
    wrong = [f"{word}: {check}, {_names(nodes, len(findings))}: {said}" for (word, check, said), nodes in remedies.items()]
    head = ("check", "node", "verdict", "value", "want", "SmolLM3 had")
    return "\n".join([table(head, rows, left=len(head)), *skipped, *wrong])


def _names(nodes: Sequence[str], total: int) -> str:
    return "all" if len(nodes) == total > 1 else ",".join(nodes)
