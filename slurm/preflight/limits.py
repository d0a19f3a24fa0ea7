"""What counts as bad: the settings of a file in configs/preflight. null: measured and shown, not judged, or not run at all."""

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from smol_config import Section


class GpuLimits(Section):
    """What is asked of every GPU of a node. Clocks, temperature and throttling are read while all of them multiply matrices."""

    gemm_seconds: PositiveFloat = 5.0
    """How long they do."""
    gemm_size: PositiveInt = 8192
    """Rows and columns of the square bf16 matrices."""
    gemm_tflops: PositiveFloat | None = None
    """At least, of the slowest GPU."""
    copy_megabytes: PositiveInt = 4096
    """Copied from one place in the GPU's memory to another."""
    memory_gigabytes_per_second: PositiveFloat | None = None
    """At least, of the slowest GPU, bytes read and bytes written both counted."""
    temperature_celsius: PositiveInt | None = None
    """At most, of the hottest GPU."""
    clock_mhz: PositiveInt | None = None
    """At least, of the slowest GPU's multiprocessors."""
    xid_hours: PositiveFloat = 24.0
    """How far the kernel log is read back for errors of the driver."""


class ToolLimits(Section):
    """Tools that are used where they are installed."""

    dcgm_level: PositiveInt | None = None
    """`dcgmi diag -r LEVEL`: 1 takes seconds, 2 minutes, 3 and 4 half an hour and more."""
    fryer_seconds: PositiveInt | None = None
    """`gpu-fryer SECONDS`, which takes no less than 10."""
    fio_iops: PositiveInt | None = None
    """At least, of random reads of 4 KiB from the nodes' own disks; null leaves fio out."""


class StorageLimits(Section):
    """The nodes' own disks (SMOL_LOCAL_DATA) and the run's folder. All nodes write and read at the same time."""

    megabytes: PositiveInt = 4096
    """Written and read again by each node, in each of the two."""
    streams: PositiveInt = 8
    """Files at a time."""
    scratch_write: PositiveFloat | None = None
    """GB/s of a node, at least. The same for the next three."""
    scratch_read: PositiveFloat | None = None
    shared_write: PositiveFloat | None = None
    shared_read: PositiveFloat | None = None


class NetworkLimits(Section):
    """Bus bandwidth of all-reduces in GB/s, at least, and the ways that they may take."""

    megabytes: PositiveInt = 1024
    """Size of what is reduced, on every rank."""
    iterations: PositiveInt = 10
    """All-reduces of one try, after two that do not count."""
    tries: PositiveInt = 2
    """The best one counts: other jobs share the network."""
    pairs: NonNegativeInt = 3
    """Partners with which every node is measured, one after the other."""
    node: PositiveFloat | None = None
    """The ranks of one node."""
    pair: PositiveFloat | None = None
    """Two nodes."""
    all: PositiveFloat | None = None
    """Three nodes and more."""
    allow_sockets: bool = False
    """TCP between nodes, where there is neither InfiniBand nor RoCE nor EFA."""
    allow_pcie: bool = False
    """PCIe or host memory between the GPUs of a node, where there is no NVLink."""
    seconds: PositiveInt = 300
    """After which a collective counts as hung."""


class Limits(Section):
    """All of them."""

    gpu: GpuLimits = GpuLimits()
    tools: ToolLimits = ToolLimits()
    storage: StorageLimits = StorageLimits()
    network: NetworkLimits = NetworkLimits()
