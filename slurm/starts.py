"""The starts of a job: which there were, how each ended, and whether there is to be another. Kept in RUN/slurm/starts.jsonl.

    python -m slurm.starts begin RUN --chain C --job ID --restart N --nodes n1,n2 --max-restarts M [--trains]
    python -m slurm.starts end   RUN --chain C --job ID --code CODE --reason WHY  --max-restarts M [--trains] [--bad n1]

slurm/run.sh calls `begin` before it starts the ranks: exit code 0, or 93 and a sentence when the job is not to be started.
`end` prints one line for it: "done", "stop", "leave" (to Slurm), or "again" with the nodes to leave out: those where a device
is suspected, and those that failed the preflight.

A chain is all starts of one submission, whether Slurm requeued the job or another job took over. It ends when it has been
started too often, or when two restarts brought no new checkpoint: a fault that comes again at once would otherwise burn the
whole allocation overnight. Starts that were preempted, or ended before the ranks began because a node was bad, do not count as
fruitless, since the run had no part in their end.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from smol_train.checkpoint_folder import step_of, whole_checkpoints
from smol_train.exit_codes import DONE, REFUSED

FRUITLESS_RESTARTS = 2
"""Restarts without a new checkpoint after which the chain ends."""

Reason = Literal["done", "stopped", "time limit", "preempted", "ended", "asked for", "crash", "bad node"]
"""ended: by Slurm, as when a node dies or at scancel. asked for: by the ranks themselves, after a signal that they heard, a
hang, or a NaN that points to a device; or by staging, to which the source of the data gave no answer. bad node: by the
preflight; the ranks were not started."""


@dataclass(frozen=True)
class Start:
    """One start of the job, as its two lines in starts.jsonl tell it."""

    chain: str
    job: str
    nodes: list[str]
    checkpoint: int
    """Step of the newest whole checkpoint; -1: none."""
    suspects: int
    """Lines of RUN/suspects.jsonl at that time."""
    reason: str | None = None
    """Why it ended; None: nothing was told, as when the first node dies."""
    bad: list[str] = field(default_factory=list)
    """Nodes that failed the preflight."""


@dataclass(frozen=True)
class Next:
    """What becomes of the job."""

    step: Literal["done", "stop", "again", "leave"]
    sentence: str
    exclude: list[str] = field(default_factory=list)
    """Nodes on which it must not be started again."""

    def __str__(self) -> str:
        return " ".join([self.step, *([",".join(self.exclude)] if self.exclude else [])])


def refusal(starts: Sequence[Start], newest: int, max_restarts: int, trains: bool) -> str | None:
    """Why a chain with these starts, whose newest checkpoint is `newest`, is not to be started once more; None: it may be."""
    if len(starts) > max_restarts:
        return (
            f"it was started {len(starts)} times, and SMOL_MAX_RESTARTS={max_restarts}; look at the log, then submit it again"
        )
    fruitless = _fruitless(starts, newest, trains)
    if fruitless <= FRUITLESS_RESTARTS:
        return None
    nothing = (f"no checkpoint after step {newest}" if newest >= 0 else "no checkpoint") if trains else "only crashes"
    ends = ", ".join(start.reason or "lost" for start in starts[-fruitless:])
    return f"its last {fruitless} starts brought {nothing} ({ends}); mend what the log shows, then submit it again"


def _fruitless(starts: Sequence[Start], newest: int, trains: bool) -> int:
    """How many starts up to the last brought nothing."""
    count = 0
    for start in reversed(starts):
        if start.reason in ("preempted", "bad node"):
            continue
        # After a rollback the newest checkpoint is an older one; that is no progress either.
        if start.checkpoint < newest if trains else start.reason not in ("crash", "ended", None):
            break
        count += 1
    return count


def decide(starts: Sequence[Start], code: int, newest: int, max_restarts: int, trains: bool, suspects: Sequence[str]) -> Next:
    """What follows the end of the chain's last start. `suspects`: the host of every line of RUN/suspects.jsonl."""
    last = starts[-1]
    if last.reason == "ended":
        return Next("leave", "Slurm ended it, and starts it again if it was for a lost node")
    if code == DONE:
        return Next("done", "done")
    if code == REFUSED:
        return Next("stop", f"the ranks ended with {REFUSED}: not to be started again before what they said is mended")
    if why := refusal(starts, newest, max_restarts, trains):
        return Next("stop", f"not started again: {why}")
    if not (set(suspects[last.suspects :]) & set(last.nodes) or last.bad):
        return Next("again", f"to be started again ({last.reason})")
    bad = {node for start in starts for node in start.bad}
    exclude = sorted(bad.union(suspects[starts[0].suspects :]))
    told = [f"{node} ({'failed the preflight' if node in bad else 'a device is suspected'})" for node in exclude]
    return Next("again", f"to be started again without {', '.join(told)}", exclude)


# --- what is on disk -------------------------------------------------------------------------------------------------------


def newest_step(run: Path) -> int:
    """Of the whole checkpoints; -1: there is none."""
    return max(map(step_of, whole_checkpoints(run)), default=-1)


def read_starts(run: Path, chain: str) -> list[Start]:
    """The chain's starts, oldest first. A line that a full disk cut off is passed over."""
    starts: list[Start] = []
    for line in _lines(run / "slurm" / "starts.jsonl"):
        if line.get("chain") != chain:
            continue
        told = {name: line[name] for name in ("chain", "job", "nodes", "checkpoint", "suspects") if name in line}
        if line["event"] == "start":
            starts.append(Start(**told))
        elif starts and line["event"] == "end":
            starts[-1] = Start(**{**asdict(starts[-1]), "reason": line["reason"], "bad": line.get("bad", [])})
    return starts


def suspect_hosts(run: Path) -> list[str]:
    """The host of each line of RUN/suspects.jsonl."""
    return [line["host"] for line in _lines(run / "suspects.jsonl")]


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def _append(run: Path, line: dict[str, Any]) -> None:
    path = run / "slurm" / "starts.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf8") as file:
            file.write(json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), **line}) + "\n")
    except OSError as error:  # the trainer copes with a full disk, and so does this
        _say(f"{path} cannot be written ({error.strerror}); this start will not be counted")


# --- the command -----------------------------------------------------------------------------------------------------------


def _begin(options: argparse.Namespace) -> int:
    starts, newest = read_starts(options.run, options.chain), newest_step(options.run)
    why = refusal(starts, newest, options.max_restarts, options.trains)
    if not why and options.restart > options.max_restarts:  # the list could not be written
        why = f"Slurm has restarted it {options.restart} times, and SMOL_MAX_RESTARTS={options.max_restarts}; submit it again"
    if why:
        _say(f"not started: {why}")
        _append(options.run, {"event": "refused", "chain": options.chain, "job": options.job, "why": f"not started: {why}"})
        return REFUSED
    suspects = len(suspect_hosts(options.run))
    start = Start(options.chain, options.job, options.nodes.split(","), newest, suspects)
    told = {name: value for name, value in asdict(start).items() if name not in ("reason", "bad")}
    _append(options.run, {"event": "start", **told, "restart": options.restart})
    since = f"goes on from step {newest}" if newest >= 0 else "no checkpoint yet"
    _say(f"start {len(starts) + 1} of chain {options.chain} on {options.nodes}" + (f": {since}" if options.trains else ""))
    return 0


def _end(options: argparse.Namespace) -> int:
    starts, newest = read_starts(options.run, options.chain), newest_step(options.run)
    last = starts[-1] if starts else Start(options.chain, options.job, [], newest, 0)  # the list could not be written
    bad = [node for node in options.bad.split(",") if node]
    starts = [*starts[:-1], Start(**{**asdict(last), "reason": options.reason, "bad": bad})]
    found = decide(starts, options.code, newest, options.max_restarts, options.trains, suspect_hosts(options.run))
    line = {"event": "end", "chain": options.chain, "job": options.job, "checkpoint": newest, "code": options.code}
    line |= {"reason": options.reason, "bad": bad, "next": found.step, "exclude": found.exclude, "why": found.sentence}
    _append(options.run, line)
    _say(found.sentence)
    print(found)
    return 0


def _say(sentence: str) -> None:
    print(f"{datetime.now(UTC):%FT%TZ} {sentence}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m slurm.starts", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("begin", "note a start, or refuse it"), ("end", "note its end, and say what follows")):
        command = commands.add_parser(name, help=what)
        command.add_argument("run", type=Path, metavar="RUN")
        command.add_argument("--chain", required=True, help="name of the submission")
        command.add_argument("--job", required=True, help="Slurm's id")
        command.add_argument("--max-restarts", type=int, required=True)
        command.add_argument("--trains", action="store_true", help="checkpoints of RUN are the job's progress")
        if name == "begin":
            command.add_argument("--restart", type=int, required=True, help="SLURM_RESTART_COUNT")
            command.add_argument("--nodes", required=True, help="names, with commas between")
        else:
            command.add_argument("--code", type=int, required=True, help="exit code of the ranks")
            command.add_argument("--reason", choices=get_args(Reason), required=True)
            command.add_argument("--bad", default="", metavar="NODES", help="failed the preflight, with commas between")
    options = parser.parse_args(arguments)
    return _begin(options) if options.command == "begin" else _end(options)


if __name__ == "__main__":
    sys.exit(main())
