"""What trains a sweep's runs: pre-training or a recipe of post-training. All that differs between them stands here.

    recipe: null     pretrain_smol.py                   the plan knows the last step, whose checkpoint conversion exports
    recipe: sft      python -m post_training sft        the run tells that it is done, and has left hf/step_N itself

Both take --config C.yaml, with --dry-run --json for a plan; both leave metrics.jsonl, alerts.jsonl and iter_N/COMPLETE, and end
with 85 or 93 where they are to be started again or not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Kind:
    """Pre-training, or a recipe."""

    command: tuple[str, ...]
    """What python runs, before its options."""
    job: tuple[str, ...]
    """What slurm/submit.sh takes: a job, and what stands behind the configuration."""
    held_out: Mapping[str, bool]
    """Scores of data.held_out in metrics.jsonl, NAME/ for all of a group: is higher better? Only those that arms share: the
    loss on pairs is another number for each loss and beta."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Settings of every run, beside its seed and folder."""
    resolved: tuple[str, ...] = ()
    """Settings of the top that a run's configuration holds with their ${NAME}s filled in: what it began with."""
    exports: bool = False
    """The last checkpoint has to be exported, and is the planned one."""
    loss_falls: bool = True
    """A loss that ends above its start is a divergence. GRPO's is near 0 whatever is learnt."""

    def scores(self, name: str) -> bool:
        """Whether a name in metrics.jsonl is one of `held_out`."""
        return name in self.held_out or any(one.endswith("/") and name.startswith(one) for one in self.held_out)


def _recipe(name: str, held_out: Mapping[str, bool], loss_falls: bool = True) -> Kind:
    command, job = ("-m", "post_training", name), ("post_training", "--", name)
    return Kind(command, job, held_out, resolved=("model",), loss_falls=loss_falls)


PRETRAINING = Kind(
    (str(REPOSITORY / "pretrain_smol.py"),),
    ("pretrain",),
    {"eval/loss/": False},
    own={"train.purpose": "ablation"},
    exports=True,
)
RECIPES = {
    "mid": _recipe("mid", {"eval/loss": False}),
    "sft": _recipe("sft", {"eval/loss": False}),
    "preference": _recipe("preference", {"eval/rewards/accuracies": True}),
    "grpo": _recipe("grpo", {"eval/reward": True}, loss_falls=False),
}
"""By the names of `python -m post_training`."""


def kind_of(recipe: str | None) -> Kind:
    """Of a sweep's `recipe`."""
    return RECIPES[recipe] if recipe else PRETRAINING
