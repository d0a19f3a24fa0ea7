"""`mixture`: check and plan a configuration's mixture before the data are there: shares, tokens, epochs, doubtful weights.

Looks at a configuration's `data:` section alone, so it runs before `prepare` and needs no environment variable set. Sizes
come from the manifests of the folders that exist, else from a catalogue (data_tools.catalogue), and are else not known.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from data_tools.catalogue import find_catalogue, load_catalogue
from data_tools.mixture_plan import MixturePlan, plan_mixture
from data_tools.plots import check_picture, draw_mixture
from data_tools.run_config import load_data_run
from smol_console import add_command, percent, short, table


def add_parser(subparsers: Any) -> None:
    """Add `mixture` to the command line."""
    parser = add_command(
        subparsers,
        "mixture",
        "Check and plan a configuration's mixture: shares, tokens and epochs of every dataset and stage, and what is doubtful.",
        "python -m data_tools mixture --config configs/smollm3/pretrain.yaml --output mixture.png",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="C.yaml", help="configuration of a run")
    parser.add_argument(
        "--catalogue", type=Path, metavar="FILE", help="groups and sizes (default: catalogue.yaml beside the configuration)"
    )
    parser.add_argument("--json", action="store_true", help="the plan as JSON instead of tables")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="also draw the stages' shares (.png, .svg or .pdf)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file's")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """The command; raises UserError on a configuration or catalogue that cannot be used."""
    if options.output:
        check_picture(options.output)
    run_of_data = load_data_run(options.config, options.overrides, keep_unset=True)
    file = options.catalogue or find_catalogue(options.config)
    plan = plan_mixture(run_of_data, load_catalogue(file) if file else None)
    if options.output:
        draw_mixture(options.output, plan)
    if options.json:
        print(json.dumps(plan.as_json(), indent=2))
        return
    print(stages_table(plan))
    print(f"\n{datasets_table(plan)}")
    if any(source.tokens_from == "catalogue" for source in plan.sources.values()):
        print("\n~ from the catalogue, by the makers' own tokenizers; ? not known")
    for warning in plan.warnings:
        print(f"\nwarning: {warning}")
    if options.output:
        print(f"\nwritten: {options.output}")


def stages_table(plan: MixturePlan) -> str:
    """A column a stage: its length, its weights' sum and the share of each group."""
    groups = [stage.groups(plan.sources) for stage in plan.stages]
    order = sorted({name for stage in groups for name in stage}, key=lambda name: -max(s.get(name, 0) for s in groups))
    rows = [
        ["steps", *(f"{stage.steps:,}" for stage in plan.stages)],
        ["tokens", *(short(stage.tokens) for stage in plan.stages)],
        ["datasets", *(str(len(stage.draws)) for stage in plan.stages)],
        ["sum of weights", *(f"{stage.weight_sum:.7g}" for stage in plan.stages)],
        *([name, *(percent(stage.get(name, 0.0)) for stage in groups)] for name in order),
    ]
    return table(["stage", *(stage.name for stage in plan.stages)], rows)


def datasets_table(plan: MixturePlan) -> str:
    """A line a dataset: what it holds, its share, tokens and epochs in every stage, and in the whole run."""
    draws = [{draw.dataset: draw for draw in stage.draws} for stage in plan.stages]
    used = [name for name in plan.sources if any(name in stage for stage in draws)]
    groups = list(dict.fromkeys(plan.sources[name].group for name in used))
    rows = []
    for name in sorted(used, key=lambda name: groups.index(plan.sources[name].group)):
        source = plan.sources[name]
        row = [name, source.group, ("~" if source.tokens_from == "catalogue" else "") + short(source.tokens)]
        for stage in draws:
            draw = stage.get(name)
            row += [percent(draw.share), short(draw.tokens), _epochs(draw.epochs)] if draw else ["-", "-", "-"]
        rows.append([*row, short(plan.drawn(name)), _epochs(plan.epochs(name))])
    titles = [title for stage in plan.stages for title in (stage.name, "tokens", "epochs")]
    return table(["dataset", "group", "holds", *titles, "in all", "epochs"], rows, left=2)


def _epochs(epochs: float | None) -> str:
    return "?" if epochs is None else f"{epochs:.2f}" if epochs < 9.995 else f"{epochs:.0f}"
