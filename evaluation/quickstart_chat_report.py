"""quickstart_chat.sh's last step: what each stage brought on held-out drills, and whether it came at the stage that is for it.

    python -m evaluation.quickstart_chat_report runs/chat --output runs/chat/report

    ROOT/scores_base, ROOT/seed_*/scores/STAGE of `run`  -->  scores by stage, what is expected of each stage: OUT.md, OUT.png

Exits 1 when a score did not rise where it should have: when its interval, over the questions and the seeds, reaches down to 0;
and when one fell that was to be held: when its interval lies below 0. A seed's model is compared with the one it was made from.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from evaluation.pairs import Difference, difference
from smol_config import UserError
from smol_console import exit_code, table

STAGES = ("base", "mid", "sft", "preference", "grpo", "merged")
MODES = ("think", "no_think")
METRICS = ("form", "mode", "right", "reward")
"""As evaluation/drills/drills.py has them."""
RISES = {
    "mid": ("think/form", "think/mode", "think/right", "think/reward"),
    "sft": ("no_think/mode", "no_think/reward"),
    "preference": ("no_think/mode", "think/right", "no_think/right", "think/reward", "no_think/reward"),
    "grpo": ("think/right", "think/reward"),
}
"""What a stage is for, against the one before: mid-training teaches the form and to think, SFT to leave it where it is not
wanted; preferences and rewards mend the teacher's faults."""
HOLDS = {
    "grpo": ("no_think/mode", "no_think/right", "no_think/reward"),
    "merged": tuple(f"{mode}/{metric}" for mode in MODES for metric in METRICS),
}
"""What it must not lose: GRPO what preferences brought in /no_think, where they leave it hardly any room; the merge
everything."""

Scores = Mapping[str, Sequence[Path]]
"""Stage -> folders of `run`, one a seed; of the model that all seeds begin with, one."""


class Change(NamedTuple):
    """What a stage did to a score of which something is expected."""

    stage: str
    score: str
    to_rise: bool
    """Else it is to hold."""
    difference: Difference

    @property
    def verdict(self) -> str:
        """In capitals where it is not as expected."""
        low, high = self.difference.interval
        if low > 0:
            return "rose"
        if self.to_rise:
            return "DID NOT RISE"
        return "FELL" if high < 0 else "held"


def full_name(score: str) -> str:
    """think/form -> as results.json has it."""
    mode, metric = score.split("/")
    return f"eval/drills_{mode}/{mode}/{metric}"


def read_scores(root: Path) -> Scores:
    """The stages' folders. Raises UserError where a seed lacks a stage's results, or there is no seed."""
    seeds = sorted(root.glob("seed_*"))
    if not seeds:
        raise UserError(f"{root} holds no seed_N; make it with `bash quickstart_chat.sh`")
    scores = {"base": [root / "scores_base"]} | {stage: [seed / "scores" / stage for seed in seeds] for stage in STAGES[1:]}
    for folder in (folder for folders in scores.values() for folder in folders):
        if not (folder / "results.json").is_file():
            raise UserError(f"{folder} has no results.json; let `bash quickstart_chat.sh` finish")
    return scores


def find_changes(scores: Scores) -> list[Change]:
    """Every score that a stage is to raise or to hold, with its paired interval."""
    found = []
    for before, stage in pairwise(STAGES):
        paired = before != "base"  # of which all seeds' models are made
        for score in (*RISES.get(stage, ()), *HOLDS.get(stage, ())):
            apart = difference(full_name(score), scores[before], scores[stage], higher_is_better=True, paired_seeds=paired)
            assert apart, f"{full_name(score)} is in no samples of {stage}"
            found.append(Change(stage, score, score in RISES.get(stage, ()), apart))
    return found


def means(scores: Scores) -> dict[str, dict[str, float]]:
    """Stage -> score -> mean over the seeds."""
    found: dict[str, dict[str, float]] = {}
    for stage, folders in scores.items():
        results = [json.loads((folder / "results.json").read_text(encoding="utf8"))["results"] for folder in folders]
        names = [f"{mode}/{metric}" for mode in MODES for metric in METRICS]
        found[stage] = {name: sum(result[full_name(name)] for result in results) / len(results) for name in names}
    return found


def tables(by_stage: Mapping[str, Mapping[str, float]], changes: Sequence[Change], seeds: int) -> str:
    """Both tables as text."""
    names = list(by_stage["base"])
    values = table(["score", *STAGES], [[name, *(f"{by_stage[stage][name]:.3f}" for stage in STAGES)] for name in names])
    rows = []
    for change in changes:
        low, high = change.difference.interval
        expected = "rise" if change.to_rise else "hold"
        rows.append([change.stage, change.score, expected, f"{low:+.3f} .. {high:+.3f}", change.verdict])
    verdicts = table(["stage", "score", "is to", "less the stage before, 95 %", "it"], rows, left=3)
    return f"share of held-out drills, mean of {seeds} seeds\n\n{values}\n\n{verdicts}"


def draw(by_stage: Mapping[str, Mapping[str, float]], scores: Scores, path: Path) -> None:
    """A panel a mode, a line a metric over the stages; dots are seeds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(MODES), figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, mode in zip(panels, MODES, strict=True):
        for number, metric in enumerate(METRICS):
            name = f"{mode}/{metric}"
            line = [by_stage[stage][name] for stage in STAGES]
            panel.plot(STAGES, line, color=f"C{number}", label=metric, linewidth=2.5 if metric == "reward" else 1.2)
            for stage, folders in scores.items():
                one = [json.loads((f / "results.json").read_text(encoding="utf8"))["results"][full_name(name)] for f in folders]
                panel.scatter([stage] * len(one), one, color=f"C{number}", s=9)
        panel.set_title(f"/{mode}", fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("share of held-out drills")
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def report(root: Path, output: Path) -> int:
    """Print, write, draw; 1 where something is not as expected."""
    scores = read_scores(root)
    changes, by_stage = find_changes(scores), means(scores)
    text = tables(by_stage, changes, len(scores["mid"]))
    print(text)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(f"```\n{text}\n```\n\n![Scores by stage]({output.name}.png)\n", encoding="utf8")
    draw(by_stage, scores, output.with_suffix(".png"))
    print(f"\nwrote {output}.md and {output}.png")
    missed = [f"{change.score} at {change.stage} {change.verdict.lower()}" for change in changes if change.verdict.isupper()]
    if missed:
        print(f"\nnot as expected, beyond noise: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.quickstart_chat_report", description=__doc__.split("\n", 1)[0])
    parser.add_argument("root", metavar="ROOT", type=Path, help="what quickstart_chat.sh makes: seed_N/scores/STAGE")
    parser.add_argument("--output", metavar="PATH", type=Path, required=True, help="PATH.md and PATH.png are written")
    options = parser.parse_args(argv)
    return exit_code(lambda: report(options.root, options.output))


if __name__ == "__main__":
    sys.exit(main())
