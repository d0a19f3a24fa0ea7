"""Which datasets a start needs on the nodes' own disks. Pure, but for the newest checkpoints' state.json.

The loader opens every dataset of the stages that lie ahead when it starts, and reads those of the stage in progress. So the
datasets of this stage and of the following one are copied: the next stage may begin while the run goes on. Those of all other
stages are linked to the shared folder, from which training may read them at any time, only more slowly; where S3 has the only
copy there is nothing to link to, and all that lie ahead are copied. Held-out sets are read from the start and copied.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smol_config import UserError
from smol_data.order import history_of
from smol_data.schedule import Segment, batch_at, resolve_segments, total_steps
from smol_train.checkpoint_folder import MARKER, TrainState, read_state, whole_checkpoints
from smol_train.config import RunConfig
from smol_train.sections.run import StartFromConfig


class StagingError(UserError):
    """Data that cannot be brought to a node's disk as things are; a second try would fail as the first did."""


@dataclass(frozen=True)
class Needs:
    """Names are paths below DATA_ROOT."""

    soon: list[str]
    """Datasets of the stage in progress and of the one after it, and held-out sets."""
    later: list[str]
    """Other datasets that the loader opens."""
    rest: list[str]
    """What else the configuration names below DATA_ROOT: datasets of finished stages, which only a run that goes back to an old
    checkpoint would read, tokenizers and the like."""
    elsewhere: list[str]
    """Folders of datasets that do not lie below DATA_ROOT, and so stay where they are."""


def find_needs(config: RunConfig, run: Path, data_root: Path) -> Needs:
    """What the next start in the folder `run` needs. Raises StagingError for a dataset that holds other data or lies in it, and
    DataError where the configuration disagrees with what was trained."""
    data = config.data
    states = _states(run, config.start_from)
    first, newest = states[0].step, states[-1]
    history = history_of(newest.data) if newest.data else []
    skips = [*data.skip_samples, *newest.skips]
    segments = resolve_segments(data.stages, data.sequence_length, config.train.batch_sizes, skips, history)
    soon, ahead = datasets_soon(segments, first, newest.step), _datasets(s for s in segments if s.end_step > first)

    folders = {**{f"held out {name}": folder for name, folder in data.held_out.items()}, **data.datasets}
    names = {key: name for key, folder in folders.items() if (name := _below(folder, data_root))}
    copied = {name for key, name in names.items() if key in soon or key not in data.datasets}
    later = {names[key] for key in names.keys() & ahead} - copied
    datasets = set(names.values())
    named = {name for text in _texts(config.model_dump(mode="json")) if (name := _below(text, data_root))}
    others = {name for name in named - datasets if not any(_inside(name, other) for other in named - datasets)}
    _check_apart(sorted(datasets), sorted(datasets | others))
    return Needs(
        soon=sorted(copied),
        later=sorted(later),
        rest=sorted(others | (datasets - copied - later)),
        elsewhere=sorted(folder for key, folder in folders.items() if key not in names),
    )


def datasets_soon(segments: Sequence[Segment], first: int, newest: int) -> set[str]:
    """Datasets of the stages in which the steps `first` to `newest` lie, and of the stage after them."""
    ahead = [segment for segment in segments if segment.end_step > first]
    if not ahead:  # the run is done
        return set()
    stages = list(dict.fromkeys(segment.stage for segment in ahead))
    now = batch_at(segments, min(newest, total_steps(segments) - 1)).stage
    near = stages[: stages.index(now) + 2]
    return _datasets(segment for segment in ahead if segment.stage in near)


def _datasets(segments: Iterable[Segment]) -> set[str]:
    return {name for segment in segments for name, weight in segment.weights.items() if weight > 0}


def _states(run: Path, start: StartFromConfig | None) -> list[TrainState]:
    """Of the newest checkpoint, and before it that of the one from which the run goes on if the newest is damaged; where the
    run has none, of the checkpoint that it starts from."""
    own = whole_checkpoints(run)
    if not own and start and start.data_position:
        folder = Path(start.checkpoint)
        own = [folder] if (folder / MARKER).is_file() else whole_checkpoints(folder)[-1:]
    states = []
    for folder in own[-2:]:
        try:
            states.append(read_state(folder))
        except (OSError, ValueError, TypeError):  # damaged: the trainer finds that too, and passes it over
            continue
    return states or [TrainState()]


def _below(text: str, root: Path) -> str | None:
    path = Path(text)
    return str(path.relative_to(root)) if path.is_relative_to(root) and path != root else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        yield from _texts(item)


def _inside(name: str, other: str) -> bool:
    return name != other and Path(name).is_relative_to(other)


def _check_apart(datasets: Sequence[str], names: Sequence[str]) -> None:
    for dataset in datasets:
        for name in names:
            if _inside(dataset, name) or _inside(name, dataset):
                raise StagingError(
                    f"below DATA_ROOT, {max(dataset, name)} lies inside {min(dataset, name)}; give each a folder of its own"
                )
