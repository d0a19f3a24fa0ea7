"""Configurations as files that others read, of ranks whose data may be copies on their nodes' own disks (docs/staging.md).

slurm/rank.sh gives such a rank its node's folder as DATA_ROOT, and as SMOL_SHARED_DATA the one that all nodes see.
"""

import os

from smol_config import to_yaml
from smol_train.config import RunConfig


def for_all_nodes(config: RunConfig) -> str:
    """The resolved configuration, its data where all nodes see it: what a checkpoint records."""
    own, shared = os.environ.get("DATA_ROOT"), os.environ.get("SMOL_SHARED_DATA")
    return to_yaml(config).replace(f"{own}/", f"{shared}/") if own and shared else to_yaml(config)


def for_each_rank(config: RunConfig) -> str:
    """The configuration with its data below ${DATA_ROOT}, of which each rank that reads it has its own."""
    own = os.environ.get("DATA_ROOT")
    return to_yaml(config).replace(f"{own}/", "${DATA_ROOT}/") if own else to_yaml(config)
