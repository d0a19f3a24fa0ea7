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
    """Nodes that found the same share a line. Below the table, the sentences of what is not ok."""
    rows, sentences = [], []
    for check in dict.fromkeys(check for of in findings.values() for check in of):
        alike: dict[tuple[str, str, str], list[str]] = {}
        said: dict[tuple[str, str], list[str]] = {}
        for node, of in findings.items():
            if (one := of.get(check)) is None:
                continue
            alike.setdefault((one.verdict, one.value, one.want), []).append(node)
            if one.sentence:
                said.setdefault((one.verdict, one.sentence), []).append(node)
        for (verdict, value, want), nodes in alike.items():
            rows.append([check, _names(nodes, len(findings)), verdict, value, want, REFERENCE.get(check, "")])
        for (verdict, sentence), nodes in said.items():
            if verdict != "ok":
                sentences.append(f"{verdict}: {check}, {_names(nodes, len(findings))}: {sentence}")
    return "\n".join([table(("check", "node", "verdict", "value", "want", "SmolLM3 had"), rows, left=6), "", *sentences])


def _names(nodes: Sequence[str], total: int) -> str:
    return "all" if len(nodes) == total > 1 else ",".join(nodes)
