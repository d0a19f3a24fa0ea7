"""`ablate SWEEP --promote NAME`: the winner of a round written as a configuration, the baseline of what comes next.

    OUTPUT/promoted/K_NAME.yaml     base: the round's baseline, and what the winner sets otherwise; ${NAME}s as written

An ordered sweep goes on from it; another sweep names it as its `baseline:`. Promoting the baseline's own name turns the round's
changes down. Taking a file away again takes the decision back, and those after it with it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.ablations.sweep import Arm, Round, Sweep, promoted_files
from smol_config import UserError, mapping_to_yaml, merge_files, nearest
from smol_files import write_whole


def promote(sweep: Sweep, current: Round, name: str, finished: set[str]) -> Path:
    """Write the arm `name` of the round as the next baseline; `finished` are the arms that have a finished run.

    Raises UserError for an unknown arm, one that was not trained to its end, and a round that was decided before.
    """
    if current.promoted:
        raise UserError(f"the last round was decided before: {current.promoted}; remove that file to decide anew")
    arms = {arm.name: arm for arm in current.arms}
    if name not in arms:
        raise UserError(f"--promote {name!r} is no arm of round {current.number}; {nearest(name, arms)}")
    if name not in finished:
        raise UserError(f"--promote {name}: none of its runs is finished; let the sweep train it first")
    path = sweep.output / "promoted" / f"{len(promoted_files(sweep)) + 1}_{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, _text(arms[name], path, current))
    return path


def _text(arm: Arm, path: Path, current: Round) -> str:
    merged = merge_files(arm.base, arm.overrides)
    base = os.path.relpath(arm.base.resolve(), path.parent.resolve())
    others = ", ".join(other.name for other in current.arms if other.name != arm.name)
    comment = f"# The winner of round {current.number}, {arm.name}, chosen over {others} (report.html there).\n"
    return comment + mapping_to_yaml({"base": base, **difference(merge_files(arm.base), merged)})


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What a file with `base:` before must hold to be `after`: lists whole, None for a key that is to go."""
    found: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        if isinstance(value, dict) and isinstance(before.get(name), dict):
            if inner := difference(before[name], value):
                found[name] = inner
        elif name not in before or before[name] != value:
            found[name] = value
    return found
