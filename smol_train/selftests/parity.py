"""`parity`: every layout that the ranks allow trains the same model as one rank.

    initial weights on one rank -> a weights-only checkpoint -> a short run in each layout -> losses and gradient norms

Initial weights are drawn per rank, so layouts start from one stored set. Where the whole model does not fit on
one rank, the configured layout takes the reference's place, which the verdict says. Data are compared too: each step of each
layout must be given the same tokens. Tolerances and where they come from: smol_train/selftests/runs.py.
"""

from smol_train.config import RunConfig
from smol_train.memory import device_memory
from smol_train.sections.run import StartFromConfig
from smol_train.selftests.base import JobError, Setting, Verdict, skipped, verdict
from smol_train.selftests.layouts import Placed, allowed, one_rank
from smol_train.selftests.runs import (
    Run,
    data_fault,
    distance,
    free_bytes,
    save_initial_weights,
    together,
    tolerance_text,
    train,
)
from smol_train.short_run import shortened


def check(setting: Setting) -> Verdict:
    layouts, refused = allowed(setting.config, setting.world_size)
    if setting.world_size == setting.config.parallel.context:
        return skipped("these ranks allow one layout only; start more ranks, e.g. --ranks 2, or under torchrun")
    [room] = setting.crew.run(free_bytes, 1)
    alone = one_rank(setting.config)
    layouts = [alone, *(one for one in layouts if one.name != alone.name)]
    fitting = [one for one in layouts if _bytes(one) <= room]
    details = [f"not compared, {reason}" for reason in refused]
    details += [
        f"not compared, {one.name} needs about {_bytes(one) / 2**30:.1f} GiB a rank, {room / 2**30:.1f} are free"
        for one in layouts
        if one not in fitting
    ]
    if len(fitting) < 2:
        names = ", ".join(one.name for one in fitting) or "no layout"
        return skipped(
            f"in {room / 2**30:.1f} GiB a rank the model fits {names}, and a comparison needs two; make it smaller, "
            f"e.g. model.num_layers=4"
        )
    reference, *others = fitting
    weights = _weights(setting, reference)
    whole = _train(setting, reference, weights)
    faults, furthest = [], {}
    for other in others:
        try:
            fault, line = _compare(whole, _train(setting, other, weights), setting.config)
        except (JobError, ValueError) as error:
            fault, line = str(error), ""
        faults += [f"{other.name}: {fault}"] if fault else []
        details += [f"{other.name}: {line}"] if line else []
        furthest[other.name] = fault or line
    names = ", ".join(one.name for one in others)
    summary = f"{setting.steps} steps in {names} like {reference.name} ({tolerance_text(setting.config.train.precision)})"
    return verdict(faults, summary, details, reference=reference.name, layouts=furthest, losses=whole.losses)


def _compare(reference: Run, other: Run, config: RunConfig) -> tuple[str, str]:
    """(fault, line for the details): one of the two is empty."""
    if fault := data_fault(reference, other):
        return fault, ""
    apart = distance(reference, other)
    if apart.within(config.train.precision):
        return "", f"same data, {apart}"
    return f"{apart}; allowed in {tolerance_text(config.train.precision)}", ""


def _weights(setting: Setting, reference: Placed) -> str:
    folder = setting.folder / "initial"
    setting.crew.run(save_initial_weights, reference.world_size, config=reference.config, folder=folder)
    return str(folder)


def _train(setting: Setting, placed: Placed, weights: str) -> Run:
    start = StartFromConfig(checkpoint=weights, optimizer=False, data_position=False)
    config = shortened(placed.config, setting.steps, setting.folder / "run").model_copy(update={"start_from": start})
    return together(setting.crew.run(train, placed.world_size, config=config))


def _bytes(placed: Placed) -> int:
    """The estimate of smol_train/memory.py for the fullest rank."""
    copies = placed.world_size // placed.config.parallel.model_ranks
    return device_memory(placed.config, placed.config.train.precision, copies).total
