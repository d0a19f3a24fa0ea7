"""The names of lm-eval's own tasks and where their files lie, from a cache.

    14,000 YAML files --lm-eval's TaskManager, once a version--> names and files as JSON --own_tasks--> tasks.py's index

lm-eval reads all its files for every command: 15 seconds of a processor, a minute on a slow disk, at each checkpoint of a run.
Only names are kept: the files of the tasks that a suite asks for are read each time.
"""

import contextlib
import importlib.metadata
import json
import os
from pathlib import Path

import lm_eval.tasks
from huggingface_hub import cached_assets_path
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind

FOLDER = Path(lm_eval.tasks.__file__).parent


def own_tasks(afresh: bool = False) -> dict[str, Entry]:
    """By name, lm-eval's tasks, groups and tags, as TaskManager.task_index has them, without what the files say.

    From the cache of this version below HF_HOME, or, `afresh` and where there is none, from the files, into it.
    """
    with contextlib.suppress(OSError, ValueError):
        if not afresh:
            kept = json.loads(_cache().read_text(encoding="utf8"))
            return {name: _entry(name, *what) for name, what in kept.items()}
    index = TaskManager().task_index
    with contextlib.suppress(OSError):  # a home that is full or read-only: the next command reads the files again
        partial = _cache().with_suffix(f".partial-{os.getpid()}")
        partial.write_text(json.dumps({name: _kept(entry) for name, entry in index.items()}), encoding="utf8")
        partial.rename(_cache())
    return index


def _cache() -> Path:
    version = importlib.metadata.version("lm_eval")
    return cached_assets_path("smol", "lm_eval", version) / "tasks.json"


def _kept(entry: Entry) -> tuple[str, str | None, list[str]]:
    return entry.kind.name, entry.yaml_path and str(entry.yaml_path.relative_to(FOLDER)), sorted(entry.tags)


def _entry(name: str, kind: str, path: str | None, tags: list[str]) -> Entry:
    return Entry(name, Kind[kind], path and FOLDER / path, None, set(tags))
