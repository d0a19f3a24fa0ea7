"""All-reduces of the job's own ranks: in every node, in pairs of nodes, over all of them. Runs on every rank, under srun.

Bus bandwidth is 2 (n - 1) / n x bytes / seconds for n ranks: what the slowest link carries, whatever n is (NVIDIA, nccl-tests,
doc/PERFORMANCE.md). Every node is measured with several partners; one that is slow even with its best partner is the slow one.
NCCL on GPUs, gloo on CPUs. OUT/network/rank_N.json says how far each rank came, for the case that one never ends.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from slurm.preflight.findings import Finding, judged
from slurm.preflight.limits import NetworkLimits
from slurm.preflight.transport import NETWORK_LOG, Transports, judge_transports, read_transports
from smol_files import write_json
from smol_train.launch import host_name, launched_as

if TYPE_CHECKING:
    import torch

PHASES = ("started", "joined", "measured its node", "measured pairs", "measured all")
"""How far a rank came."""


def bus_bandwidth(ranks: int, size: int, seconds: float) -> float:
    """Bytes per second, by the formula above, of an all-reduce of `size` bytes."""
    return 2 * (ranks - 1) / ranks * size / seconds


def pair_rounds(nodes: Sequence[str], rounds: int) -> list[list[tuple[str, str]]]:
    """Rounds of pairs in which every node meets another partner, as in a tournament; with an odd number one rests in each."""
    seats: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    pairs = []
    for _ in range(min(rounds, len(seats) - 1)):
        opposite = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
        pairs.append([(one, other) for one, other in opposite if one is not None and other is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return pairs


@dataclass
class Told:
    """What one rank measured, in bytes per second."""

    node: str
    in_node: float | None = None
    pairs: dict[str, float] = field(default_factory=dict)
    """By partner."""
    over_all: float | None = None
    transports: Transports = field(default_factory=Transports)


# --- measuring -------------------------------------------------------------------------------------------------------------


def measure(limits: NetworkLimits, out: Path) -> None:
    """On every rank: measure, and on rank 0 write OUT/network.json. Whatever torch.distributed raises goes through."""
    import torch

    rank, _, _ = launched_as()
    folder, told = out / "network", Told(host_name())
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"rank_{rank}.nccl"
    os.environ |= {**NETWORK_LOG, "NCCL_DEBUG_FILE": str(log)}

    def note(phase: str) -> None:
        write_json(folder / f"rank_{rank}.json", {"node": told.node, "phase": PHASES.index(phase)})

    note("started")
    device = _join(timedelta(seconds=limits.seconds))
    try:
        nodes: list[str] = [""] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(nodes, told.node)
        note("joined")
        data = torch.zeros(limits.megabytes * 500_000, dtype=torch.bfloat16, device=device)
        told.in_node = _rate(_ranks_of(nodes, told.node), data, limits)
        note("measured its node")
        for pairs in pair_rounds(sorted(set(nodes)), limits.pairs):
            if pair := next((pair for pair in pairs if told.node in pair), None):
                partner = pair[1] if pair[0] == told.node else pair[0]
                if rate := _rate(_ranks_of(nodes, *pair), data, limits):
                    told.pairs[partner] = rate
        note("measured pairs")
        if len(set(nodes)) > 2:
            told.over_all = _rate(list(range(len(nodes))), data, limits)
        note("measured all")
        told.transports = read_transports(log.read_text(errors="replace") if log.exists() else "")
        every: list[Told] = [told] * len(nodes)
        torch.distributed.all_gather_object(every, told)
    finally:
        torch.distributed.destroy_process_group()
    if rank == 0:
        found = judge(every, limits)
        told_by_node = {node: [{"check": check, **asdict(one)} for check, one in of.items()] for node, of in found.items()}
        write_json(out / "network.json", told_by_node)


def _join(timeout: timedelta) -> "torch.device":
    import torch

    rank, world, local = launched_as()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        rank=rank,
        world_size=world,
        timeout=timeout,
        device_id=device if cuda else None,
    )
    return device


def _ranks_of(nodes: Sequence[str], *names: str) -> list[int]:
    return [rank for rank, node in enumerate(nodes) if node in names]


def _rate(ranks: list[int], data: "torch.Tensor", limits: NetworkLimits) -> float | None:
    """Bus bandwidth of all-reduces of `data` over `ranks`, this one among them, at the best try; None for a rank alone."""
    import torch

    if len(ranks) < 2:
        return None
    group = torch.distributed.new_group(ranks, use_local_synchronization=True)
    best = float("inf")
    for _ in range(limits.tries):
        _timed(group, data, 2)
        # The try is over when its slowest rank is.
        seconds = torch.tensor([_timed(group, data, limits.iterations)], dtype=torch.float64, device=data.device)
        torch.distributed.all_reduce(seconds, torch.distributed.ReduceOp.MAX, group)
        best = min(best, float(seconds))
    torch.distributed.destroy_process_group(group)
    return bus_bandwidth(len(ranks), data.nbytes, best)


def _timed(group: "torch.distributed.ProcessGroup", data: "torch.Tensor", times: int) -> float:
    """Seconds of one all-reduce, as the mean of so many."""
    import torch

    started = time.perf_counter()
    for _ in range(times):
        torch.distributed.all_reduce(data, group=group)
    if data.is_cuda:
        torch.cuda.synchronize(data.device)
    return (time.perf_counter() - started) / times


# --- judging ---------------------------------------------------------------------------------------------------------------


def judge(every: Sequence[Told], limits: NetworkLimits) -> dict[str, dict[str, Finding]]:
    """Findings of each node by check, from what all ranks measured."""
    by_node: dict[str, list[Told]] = {}
    for told in every:
        by_node.setdefault(told.node, []).append(told)
    found = {node: _judge_node(node, ranks, limits) for node, ranks in by_node.items()}
    slow = sorted(node for node, of in found.items() if any(one.verdict == "bad" for one in of.values()))
    over_all = [told.over_all for told in every if told.over_all is not None]
    whole = _judge_all(min(over_all, default=None), slow, limits)
    return {node: {**of, "all-reduce over all": whole} for node, of in found.items()}


def _judge_node(node: str, ranks: Sequence[Told], limits: NetworkLimits) -> dict[str, Finding]:
    in_node = [told.in_node for told in ranks if told.in_node is not None]
    inside, transports = Finding("skipped", sentence="it has one rank"), Transports()
    if in_node:
        sentence = f"the GPUs of {node} reduce slowly among themselves; look at `nvidia-smi nvlink -s` and at throttling"
        inside = judged(min(in_node) / 1e9, "GB/s", least=limits.node, fault=sentence)
    pairs = {partner: min(told.pairs[partner] for told in ranks if partner in told.pairs) for partner in ranks[0].pairs}
    in_pairs = Finding("skipped", sentence="the job has one node")
    if pairs:
        shown = ", ".join(f"{partner} {rate / 1e9:.3g}" for partner, rate in pairs.items())
        sentence = f"{node} is slow with every partner ({shown} GB/s); look at its adapters and cables (ibstat, fi_info)"
        in_pairs = judged(max(pairs.values()) / 1e9, "GB/s (best partner)", least=limits.pair, fault=sentence)
    for told in ranks:
        transports |= told.transports
    checks = {"all-reduce in node": inside, "all-reduce in pairs": in_pairs}
    return {**checks, "transport": judge_transports(transports, limits)}


def _judge_all(slowest: float | None, slow: Sequence[str], limits: NetworkLimits) -> Finding:
    """Of the whole job: what one node explains is judged again without it, and what none explains stops the job."""
    if slowest is None:
        return Finding("skipped", sentence="the job has fewer than three nodes")
    sentence = "all nodes together reduce slowly, and no node alone explains it; look at the fabric and at other jobs on it"
    finding = judged(slowest / 1e9, "GB/s", least=limits.all, fault=sentence)
    if finding.verdict == "ok":
        return finding
    if slow:
        return Finding("skipped", finding.value, finding.want, f"slow, with {', '.join(slow)} among them")
    return Finding("stop", finding.value, finding.want, finding.sentence)
