"""The rehearsal of a run on two virtual nodes: the real trainer, srun, exporter, s5cmd and a webhook."""

import json
from pathlib import Path

import pytest
from alert_channel import Channel
from s3_double import S3
from slurm_cluster import Cluster, Submitter
from tiny_runs import tiny_overrides

pytestmark = pytest.mark.slow
