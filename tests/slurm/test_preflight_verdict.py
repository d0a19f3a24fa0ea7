"""Whose fault it is: nodes compared with each other, all-reduces judged, NCCL's log read. Pure functions."""

import json
from pathlib import Path

import pytest

from slurm.preflight.__main__ import main
from slurm.preflight.findings import Finding, Report, Word
from slurm.preflight.limits import Limits, NetworkLimits
from slurm.preflight.network import Told, bus_bandwidth, judge, pair_rounds
from slurm.preflight.transport import Transports, judge_transports, read_transports
from slurm.preflight.verdict import decide, read_network_step, read_node_step
from smol_config import load


def line(**words: Word) -> str:
    return str(decide({node: {"check": Finding(word)} for node, word in words.items()}))


def test_the_line_names_bad_nodes_and_stop_wins() -> None:
    assert line(n1="ok", n2="ok", n3="skipped") == "ok"
    assert line(n1="ok", n2="bad", n3="ok") == "bad n2"
    assert line(n1="bad") == "bad n1"
    assert line(n1="stop", n2="stop") == line(n1="stop") == "stop"
    found = {"n1": {"a": Finding("bad"), "b": Finding("stop")}, "n2": {"a": Finding("ok"), "b": Finding("stop")}}
    assert str(decide(found)) == "stop"


def test_what_most_nodes_have_is_no_fault_of_a_node() -> None:
    assert line(n1="bad", n2="bad", n3="ok") == line(n1="bad", n2="bad") == "stop"
    assert line(n1="bad", n2="bad", n3="ok", n4="ok") == "bad n1,n2"
    stopped = decide({node: {"gemm": Finding("bad", sentence="slow")} for node in ("n1", "n2")})
    assert stopped.findings["n1"]["gemm"].sentence == "2 of 2 nodes have it, so it is not a node's: slow"


def test_what_another_node_finds_right_is_the_nodes_fault() -> None:
    assert line(n1="ok", n2="stop", n3="ok") == "bad n2", "a file system that n2 has not mounted"


def leave(out: Path, node: str, running: str | None = None, **facts: str) -> None:
    Report(node, facts, {"gemm": Finding("ok", "700 TFLOP/s")}, running).write(out)


def test_nodes_that_say_nothing_or_hang_are_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for node in ("n1", "n4", "n5"):
        leave(tmp_path, node)
    leave(tmp_path, "n2", running="dcgm")
    assert main(["verdict", "--out", str(tmp_path), "--nodes", "n1,n2,n3,n4,n5", "--step", "node"]) == 0
    told = capsys.readouterr()
    assert told.out == "bad n2,n3\n"
    assert "bad: report, n2: its check of dcgm crashed or never ended" in told.err
    assert "bad: report, n3: it wrote nothing" in told.err
    rows = [line.split() for line in told.err.splitlines() if line.startswith("gemm")]
    assert rows == [["gemm", "n1,n2,n4,n5", "ok", "700", "TFLOP/s", "714-758", "TFLOP/s"]]


def test_facts_must_be_the_same_on_all_nodes(tmp_path: Path) -> None:
    for node, driver in {"n1": "570", "n2": "560", "n3": "570"}.items():
        leave(tmp_path, node, driver=driver, cuda="12.8")
    verdict = decide(read_node_step(tmp_path, ["n1", "n2", "n3"]))
    assert str(verdict) == "bad n2"
    assert verdict.findings["n2"]["driver"].sentence == "driver is 560, on other nodes 570; make it the same"
    verdict = decide(read_node_step(tmp_path, ["n1", "n2"]))
    assert str(verdict) == "stop"
    assert verdict.findings["n1"]["driver"].sentence == "driver differs (n1: 570; n2: 560); make it the same"
    leave(tmp_path, "n3")
    assert str(decide(read_node_step(tmp_path, ["n1", "n3"]))) == "stop", "n3 tells no driver"


def test_a_network_step_that_never_ended_names_who_is_behind(tmp_path: Path) -> None:
    (tmp_path / "network").mkdir()

    def reach(rank: int, node: str, phase: int) -> None:
        (tmp_path / "network" / f"rank_{rank}.json").write_text(json.dumps({"node": node, "phase": phase}))

    for rank, (node, phase) in enumerate([("n1", 2), ("n1", 2), ("n2", 2), ("n2", 1), ("n3", 2)]):
        reach(rank, node, phase)
    verdict = decide(read_network_step(tmp_path, ["n1", "n2", "n3"]))
    assert str(verdict) == "bad n2" and "ended or hung after 'joined'" in verdict.findings["n2"]["network"].sentence
    reach(3, "n2", 2)
    assert str(decide(read_network_step(tmp_path, ["n1", "n2", "n3"]))) == "stop", "nobody can be named"
    assert str(decide(read_network_step(tmp_path, ["n1", "n2", "n3", "n4"]))) == "bad n4", "it did not start"


# --- all-reduces -----------------------------------------------------------------------------------------------------------


def test_bus_bandwidth_is_nccl_tests_formula() -> None:
    assert bus_bandwidth(2, 10**9, 1.0) == 1e9
    assert bus_bandwidth(8, 10**9, 0.01) == pytest.approx(175e9)


@pytest.mark.parametrize("count", range(2, 12))
def test_every_node_meets_another_partner_in_each_round(count: int) -> None:
    nodes = [f"n{number}" for number in range(count)]
    rounds = pair_rounds(nodes, 3)
    pairs = [frozenset(pair) for of in rounds for pair in of]
    assert len(set(pairs)) == len(pairs) and all(len(pair) == 2 for pair in pairs)
    for of in rounds:
        met = [node for pair in of for node in pair]
        assert len(set(met)) == len(met) >= count - count % 2
    assert all(sum(node in pair for pair in pairs) >= min(2, count - 1) for node in nodes)


LIMITS = NetworkLimits(node=430, pair=400, all=280)


def measured(slow: str | None, over_all: float, nodes: int = 4) -> list[Told]:
    """One rank a node; pairs with `slow` reach a quarter."""
    names = [f"n{number + 1}" for number in range(nodes)]
    rates = {one: {other: 100e9 if slow in (one, other) else 470e9 for other in names if other != one} for one in names}
    return [Told(name, 480e9, rates[name], over_all) for name in names]


def test_the_node_that_is_slow_with_all_partners_is_named() -> None:
    verdict = decide(judge(measured("n2", 100e9), LIMITS))
    assert str(verdict) == "bad n2"
    assert (
        "n2 is slow with every partner (n1 100, n3 100, n4 100 GB/s)" in verdict.findings["n2"]["all-reduce in pairs"].sentence
    )
    assert verdict.findings["n1"]["all-reduce over all"].sentence == "slow, with n2 among them"
    assert str(decide(judge(measured(None, 330e9), LIMITS))) == "ok"


def test_slowness_that_no_node_explains_stops() -> None:
    verdict = decide(judge(measured(None, 100e9), LIMITS))
    assert str(verdict) == "stop" and "no node alone explains it" in verdict.findings["n1"]["all-reduce over all"].sentence
    assert str(decide(judge([Told("n1", 480e9, {"n2": 1e9}), Told("n2", 480e9, {"n1": 1e9})], LIMITS))) == "stop"


def test_a_node_that_is_slow_inside_is_named_by_its_slowest_rank() -> None:
    ranks = [Told("n1", 480e9), Told("n1", 200e9)]
    verdict = decide(judge(ranks, LIMITS))
    assert (
        str(verdict) == "bad n1" and "reduce slowly among themselves" in verdict.findings["n1"]["all-reduce in node"].sentence
    )
    assert verdict.findings["n1"]["all-reduce in pairs"].sentence == "the job has one node"


# --- NCCL's log ------------------------------------------------------------------------------------------------------------

ROCE = """n1:811:902 [3] NCCL INFO NET/IB : Using [0]mlx5_0:1/RoCE [1]mlx5_1:1/RoCE [RO]; OOB eth0:10.0.0.4<0>
n1:811:902 [3] NCCL INFO Using network IB
n1:811:902 [3] NCCL INFO Pattern 4, crossNic 0, nChannels 16, bw 24.000000/24.000000, type NVL/PIX, sameChannels 1
n1:811:902 [3] NCCL INFO Pattern 3, crossNic 0, nChannels 0, bw 0.000000/0.000000, type SYS/PIX, sameChannels 1
n1:811:902 [3] NCCL INFO Channel 00/0 : 3[3] -> 8[0] [send] via NET/IB/0/GDRDMA
n1:811:902 [3] NCCL INFO Channel 00/0 : 3[3] -> 2[2] via P2P/CUMEM/read
"""
INFINIBAND = ROCE.replace("RoCE", "IB")
EFA = ROCE.replace("via NET/IB/0", "via NET/AWS Libfabric/0").replace("NET/IB : Using", "NET/OFI Selected provider is efa,")
SOCKET = """n1:811:902 [0] NCCL INFO NET/IB : No device found.
n1:811:902 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.4<0>
n1:811:902 [0] NCCL INFO Channel 00/0 : 1[0] -> 0[0] [receive] via NET/Socket/0
"""
PCIE = """n1:811:902 [0] NCCL INFO Pattern 4, crossNic 0, nChannels 2, bw 12.000000/12.000000, type PHB/PIX, sameChannels 1
n1:811:902 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/IPC
"""
SHM = "n1:811:902 [0] NCCL INFO Channel 00 : 0[0] -> 1[1] via SHM/direct/direct\n"


@pytest.mark.parametrize(
    ("log", "nodes", "gpus", "verdict"),
    [
        (ROCE, {"RoCE"}, {"NVLink"}, "ok"),
        (INFINIBAND, {"IB"}, {"NVLink"}, "ok"),
        (EFA, {"AWS Libfabric"}, {"NVLink"}, "ok"),
        (SOCKET, {"Socket"}, set(), "bad"),
        (PCIE, set(), {"PCIe"}, "bad"),
        (SHM, set(), {"host memory"}, "bad"),
        ("", set(), set(), "skipped"),
    ],
)
def test_transports_are_named_and_slow_ones_are_bad(log: str, nodes: set[str], gpus: set[str], verdict: str) -> None:
    seen = read_transports(log)
    assert (seen.nodes, seen.gpus) == (nodes, gpus)
    assert judge_transports(seen, NetworkLimits()).verdict == verdict
    allowed = judge_transports(seen, NetworkLimits(allow_sockets=True, allow_pcie=True))
    assert allowed.verdict == ("skipped" if not log else "ok")


def test_slow_transports_say_what_to_look_at() -> None:
    sockets, shm = (judge_transports(read_transports(log), NetworkLimits()) for log in (SOCKET, SHM))
    assert "TCP sockets between nodes" in sockets.sentence and "network.allow_sockets" in sockets.sentence
    assert "GPUs of the node meet by host memory" in shm.sentence and "network.allow_pcie" in shm.sentence
    told = [Told("n1", transports=read_transports(INFINIBAND)), Told("n1", transports=Transports(gpus=frozenset({"PCIe"})))]
    assert judge(told, NetworkLimits())["n1"]["transport"].value == "nodes: IB, GPUs: NVLink, GPUs: PCIe"


def test_the_limits_that_come_along_are_read() -> None:
    configs = Path(__file__).parents[2] / "configs" / "preflight"
    limits = {path.stem: load(Limits, path) for path in configs.glob("*.yaml")}
    assert limits["h100_thorough"].gpu.gemm_tflops == limits["h100"].gpu.gemm_tflops == 640
    assert limits["h100_thorough"].tools.dcgm_level == 3
