"""The three steps as commands; slurm/preflight.sh runs them.

    python -m slurm.preflight node    --out OUT                      one task a node
    python -m slurm.preflight network --out OUT                      one task a rank
    python -m slurm.preflight verdict --out OUT --nodes n1,n2 --step node|network

Settings are those of slurm/env.sh, which the job has in its environment; options are there to try it without a job. Exit code 2
and one sentence for a configuration or limits that cannot be read; what is wrong with a node is no error of the command.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from slurm.preflight.findings import Node
from slurm.preflight.limits import Limits
from slurm.preflight.report import render
from slurm.preflight.verdict import decide, read_network_step, read_node_step
from smol_config import load
from smol_console import exit_code
from smol_train.config import RunConfig
from smol_train.launch import host_name


def _node(options: argparse.Namespace) -> None:
    from slurm.preflight.node import look_at

    name = host_name()
    node = Node(
        name=name,
        limits=load(Limits, options.limits),
        training=load(RunConfig, options.config) if options.config else None,
        run=options.run,
        ranks=options.ranks,
        gpus=int(options.gpus.rpartition(":")[2]),
        scratch=Path(options.scratch.replace("%N", name)) if options.scratch else None,
        source=options.source,
        device=options.device,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    look_at(node, options.out)


def _network(options: argparse.Namespace) -> None:
    from slurm.preflight.network import measure

    measure(load(Limits, options.limits).network, options.out)


def _verdict(options: argparse.Namespace) -> None:
    read = {"node": read_node_step, "network": read_network_step}[options.step]
    verdict = decide(read(options.out, options.nodes.split(",")))
    print(render(verdict.findings), file=sys.stderr)
    print(verdict)


def _parser() -> argparse.ArgumentParser:
    setting = os.environ.get
    parser = argparse.ArgumentParser(prog="python -m slurm.preflight", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    node = commands.add_parser("node", help="check this node")
    network = commands.add_parser("network", help="measure all-reduces, as one of the ranks")
    verdict = commands.add_parser("verdict", help="compare the nodes after a step")
    for command in (node, network, verdict):
        command.add_argument("--out", type=Path, required=True, help="folder that all nodes see")
    for command in (node, network):
        command.add_argument("--limits", default=setting("SMOL_PREFLIGHT", ""), help="a file of configs/preflight")
    ranks = int(setting("SMOL_NODES", "1")) * int(setting("SMOL_RANKS_PER_NODE", "1"))
    node.add_argument(
        "--config",
        default=setting("SMOL_CONFIG", ""),
        help="of the run; empty: it is none of pre-training, and only the machine is checked",
    )
    node.add_argument("--run", type=Path, default=setting("SMOL_RUN", "."), help="its folder, which all nodes share")
    node.add_argument("--ranks", type=int, default=ranks, help="of the whole job")
    node.add_argument("--gpus", default=setting("SMOL_GPUS_PER_NODE", "0"), help="of a node, such as 8 or h100:8")
    node.add_argument("--scratch", default=setting("SMOL_LOCAL_DATA", ""), help="on the node's own disk; %%N is its name")
    node.add_argument("--source", default=setting("SMOL_DATA_SOURCE", ""), help="where staging takes data from")
    node.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="that multiplies matrices")
    verdict.add_argument("--nodes", required=True, help="names, with commas between")
    verdict.add_argument("--step", choices=("node", "network"), required=True)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    command = {"node": _node, "network": _network, "verdict": _verdict}[options.command]
    return exit_code(lambda: command(options))


if __name__ == "__main__":
    sys.exit(main())
