"""A run's configuration cut down to a few steps: what --measure times and what the self-test trains."""

from pathlib import Path

from smol_train.config import RunConfig
from smol_train.sections.optim import ScheduleConfig
from smol_train.sections.watch import ProfilingConfig


def shortened(config: RunConfig, steps: int, folder: Path) -> RunConfig:
    """The first `steps` steps of the first stage, from fresh weights, into `folder`. Model, data, layout
    and the full batch stay.

    The rate climbs to its peak over these steps: the run's own warm-up would leave the weights where they are, and its peak
    at once would throw them about.
    """
    stage = config.data.stages[0].model_copy(update={"steps": steps, "tokens": None})
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"stages": [stage]}),
            "train": config.train.model_copy(update={"output_dir": str(folder), "batch_ramp": []}),
            "optim": config.optim.model_copy(update={"schedule": ScheduleConfig(kind="constant", warmup_steps=steps)}),
            "logging": config.logging.model_copy(update={"every_steps": 1}),
            "profiling": ProfilingConfig(),
            "start_from": None,
        }
    )
