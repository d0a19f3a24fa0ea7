"""What several tests of suites name: where the offline tasks are, the type of the fixtures that write tasks and suites."""

from collections.abc import Callable
from pathlib import Path

from tiny_runs import REPOSITORY

OFFLINE = REPOSITORY / "evaluation" / "offline"
Write = Callable[..., Path]
