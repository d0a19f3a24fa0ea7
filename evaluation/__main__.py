"""Entry of `python -m evaluation`: run one command, turn a user's mistake into one sentence and an exit code.

    held-out   the trainer's held-out loss of a Hugging Face folder (held_out.py), as one JSON file
    run        a folder through a suite of tasks, by transformers or a server; show: the prompts of one
    judge      what the judges of a suite have not judged yet of a run's results
    watch      every checkpoint of a run, once; prefetch: a suite's data, for nodes without internet
    chat       talk to a model; vibe: the same words to several, side by side
    compare    models side by side; properties: whether tasks are fit to decide by
    ablate     changes to a training configuration, trained and compared with the noise of seeds (ablations/)
    fit        scaling laws from what was trained (scaling_laws.py)

Exit codes: 0 done; 1 done but for tasks whose data or packages could not be reached, or runs of a sweep that failed or are to
go on; 2 bad input (nothing written).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation import chat, compare, judge, prefetch, properties_report, scaling_report, vibe, watch
from evaluation.ablations import command as ablations
from evaluation.results import result_table
from evaluation.scalars import add_records
from evaluation.suite import Suite, SuiteTask, load_suite
from smol_config import UserError, load_mapping, parse
from smol_console import add_command, exit_code, whole_number
from smol_data.config import DataConfig

WINDOWS = 256
"""Of each held-out set, where the configuration has no evaluation.windows: the trainer's default."""

OVERRIDDEN = ("run", "show", "prefetch", "watch", "ablate")
"""Commands that take key=value."""


def held_out(options: argparse.Namespace) -> int:
    """Write {"model": HF_DIR, "results": {"eval/loss/NAME": loss in nats}} for every set of data.held_out: the trainer's names,
    so that TensorBoard draws both into one chart.

    Raises UserError for a folder that is no model, a configuration without held-out sets, and one that does not open.
    """
    mapping = load_mapping(options.config)
    data = parse(DataConfig, mapping.get("data", {}), source=str(options.config), at="data")
    if not data.held_out:
        raise UserError(f"{options.config}: data.held_out names no dataset; add one to evaluate on")
    if not (options.hf_dir / "config.json").is_file():
        raise UserError(f"{options.hf_dir} has no config.json; give a Hugging Face folder, as to-hf makes them")
    import torch
    from transformers import AutoModelForCausalLM

    from evaluation.held_out import held_out_loss

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(options.hf_dir, dtype="auto").eval().to(device)
    windows = (mapping.get("evaluation") or {}).get("windows", WINDOWS)
    results = {}
    for name, folder in data.held_out.items():
        loss, targets = held_out_loss(model, folder, data.sequence_length, windows)
        results[f"eval/loss/{name}"] = loss
        print(f"{name}: {loss:.5f} nats over {targets:,} targets", flush=True)
    record = {"model": str(options.hf_dir), "results": results}
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
    return 0


def run(options: argparse.Namespace) -> int:
    """Evaluate, print the table, add the scalars."""
    suite = load_suite(options.suite, options.overrides)
    asked = _asked(suite, options)
    if options.served_model and not options.server:
        raise UserError("--served-model is a name at a server; give --server too")
    from evaluation.client import find
    from evaluation.run import run as run_suite

    server = find(options.server, options.served_model) if options.server else None
    record = run_suite(options.hf_dir, suite, asked, options.output, options.subset, server, options.concurrency)
    print(result_table(record))
    if options.tensorboard:
        add_records(options.tensorboard, [record])
    print(f"wrote {options.output / 'results.json'} and the samples beside it", flush=True)
    return judge.tell(record)


def show(options: argparse.Namespace) -> int:
    """Print prompts."""
    suite = load_suite(options.suite, options.overrides)
    asked = _asked(suite, options)
    from evaluation.run import show as show_prompts

    show_prompts(options.hf_dir, suite, asked, options.count)
    return 0


def _asked(suite: Suite, options: argparse.Namespace) -> list[SuiteTask]:
    asked = suite.selected(options.use)
    if not asked:
        raise UserError(f"{options.suite}: no task has use: {options.use}, which --use asks for; give the other use")
    return asked


# --- arguments -------------------------------------------------------------------------------------------------------------


def _add_held_out(commands: Any) -> None:
    command = add_command(
        commands,
        "held-out",
        "Loss on data.held_out, over the windows and targets that the trainer evaluates.",
        "python -m evaluation held-out runs/smollm3/hf/step_40000 --config configs/smollm3/pretrain.yaml --output loss.json",
    )
    command.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="a Hugging Face folder")
    command.add_argument("--config", metavar="C", type=Path, required=True, help="the run's configuration")
    command.add_argument("--output", metavar="FILE", type=Path, required=True, help="JSON with the losses")
    command.set_defaults(run=held_out)


def _add_suite_command(commands: Any, name: str, summary: str, rest: str) -> argparse.ArgumentParser:
    """`run` or `show`: a model and a suite."""
    command = add_command(
        commands, name, summary, f"python -m evaluation {name} runs/quickstart/hf --suite evaluation/suites/offline.yaml{rest}"
    )
    command.add_argument("hf_dir", metavar="HF_DIR", type=Path, help="a Hugging Face folder")
    command.add_argument(
        "--suite", metavar="S.yaml", type=Path, required=True, help="tasks, and how; key=value replaces a setting of it"
    )
    command.add_argument("--use", choices=("development", "report"), default="development", help="which of its tasks")
    return command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    _add_held_out(commands)
    command = _add_suite_command(commands, "run", "Score a model on a suite of tasks.", " --output runs/quickstart/scores")
    command.add_argument("--output", metavar="OUT_DIR", type=Path, required=True, help="a new folder: results.json, samples/")
    command.add_argument("--subset", metavar="N", type=whole_number(1), help="at most N questions a task, drawn by the seed")
    command.add_argument("--server", metavar="URL", help="who answers, as http://HOST:8000/v1 of vLLM; without it transformers")
    command.add_argument("--served-model", metavar="NAME", help="the server's name of the model; needless if it has one")
    command.add_argument(
        "--concurrency", metavar="N", type=whole_number(1), default=32, help="requests to the server at once (default 32)"
    )
    command.add_argument(
        "--tensorboard", metavar="DIR", type=Path, help="add the scores to DIR, by training step and by tokens"
    )
    command.add_argument("--config", metavar="C", type=Path, help="taken and not used: jobs give the run's configuration")
    command.set_defaults(run=run)
    command = _add_suite_command(commands, "show", "Print the prompts of a suite's tasks, without a model.", " --count 1")
    command.add_argument("--count", metavar="N", type=whole_number(1), default=1, help="questions a task (default 1)")
    command.set_defaults(run=show)
    judge.add_parser(commands)
    prefetch.add_parser(commands)
    watch.add_parser(commands)
    chat.add_parser(commands)
    vibe.add_parser(commands)
    compare.add_parser(commands)
    properties_report.add_parser(commands)
    ablations.add_parser(commands)
    scaling_report.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)  # key=value after HF_DIR and options, where argparse takes none
    options.overrides = overrides
    if wrong := [word for word in overrides if word.startswith("-") or options.command not in OVERRIDDEN]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    return exit_code(lambda: int(options.run(options)))


if __name__ == "__main__":
    sys.exit(main())
