"""Reads from NCCL's own log (NCCL_DEBUG=INFO) which way data take: a fall back to TCP costs most of the speed, silently.

The lines that are read, as NCCL 2.12 and later write them (src/transport/net.cc, p2p.cc, shm.cc, src/graph/search.cc):

    n1:811:902 [3] NCCL INFO NET/IB : Using [0]mlx5_0:1/RoCE [1]mlx5_1:1/RoCE [RO]; OOB eth0:10.0.0.4<0>
    n1:811:902 [3] NCCL INFO Pattern 4, crossNic 0, nChannels 16, bw 24.000000/24.000000, type NVL/PIX, sameChannels 1
    n1:811:902 [3] NCCL INFO Channel 00/0 : 3[3] -> 8[0] [send] via NET/IB/0/GDRDMA
    n1:811:902 [3] NCCL INFO Channel 00/0 : 3[3] -> 2[2] via P2P/CUMEM/read
"""

import re
from dataclasses import dataclass

from slurm.preflight.findings import Finding
from slurm.preflight.limits import NetworkLimits

NETWORK_LOG = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,NET,GRAPH"}
"""Environment in which NCCL writes these lines."""
SOCKETS = "Socket"
NVLINK_PATHS = {"NVL", "NVB", "C2C", "LOC"}
"""How NCCL calls paths between GPUs that cross no PCIe: NVLink, also through another GPU, Grace's own link, the GPU itself."""


@dataclass(frozen=True)
class Transports:
    """The ways that were seen."""

    nodes: frozenset[str] = frozenset()
    """Between nodes: IB, RoCE, Socket, or what a plugin calls itself (AWS Libfabric, OFI)."""
    gpus: frozenset[str] = frozenset()
    """Between the GPUs of a node: NVLink, PCIe, host memory."""

    def __or__(self, other: "Transports") -> "Transports":
        return Transports(self.nodes | other.nodes, self.gpus | other.gpus)


def read_transports(log: str) -> Transports:
    """What the log of a rank, or of several, tells."""
    networks = set(re.findall(r" via NET/([^/\n]+)/\d", log))
    if "IB" in networks and re.search(r"NET/IB : Using .*/RoCE", log):
        networks = networks - {"IB"} | {"RoCE"}
    paths = {path for channels, path in re.findall(r"nChannels (\d+), .*type (\w+)/\w+", log) if int(channels)}
    gpus = set()
    if " via P2P/" in log:
        gpus.add("NVLink" if paths <= NVLINK_PATHS else "PCIe")
    if " via SHM" in log:
        gpus.add("host memory")
    return Transports(frozenset(networks), frozenset(gpus))


def judge_transports(seen: Transports, limits: NetworkLimits) -> Finding:
    """Sockets between nodes, PCIe or host memory between GPUs are bad unless they are allowed."""
    value = ", ".join([*(f"nodes: {name}" for name in sorted(seen.nodes)), *(f"GPUs: {name}" for name in sorted(seen.gpus))])
    want = "no sockets" * (not limits.allow_sockets) + ", no PCIe" * (not limits.allow_pcie)
    want = want.removeprefix(", ")
    if not value:
        return Finding("skipped", sentence="NCCL named no transport: a node of one GPU, or it is not NCCL")
    if SOCKETS in seen.nodes and not limits.allow_sockets:
        sentence = (
            "NCCL sends by TCP sockets between nodes; look at the lines NET/IB and NET/Plugin of its log in OUT/network, set "
            "the network's block in slurm/env.sh, or allow it by network.allow_sockets"
        )
        return Finding("bad", value, want, sentence)
    if seen.gpus - {"NVLink"} and not limits.allow_pcie:
        sentence = (
            f"GPUs of the node meet by {' and '.join(sorted(seen.gpus - {'NVLink'}))}; look at `nvidia-smi topo -m` and at "
            f"nvidia-fabricmanager, unset NCCL_P2P_DISABLE, or allow it by network.allow_pcie"
        )
        return Finding("bad", value, want, sentence)
    return Finding("ok", value, want)
