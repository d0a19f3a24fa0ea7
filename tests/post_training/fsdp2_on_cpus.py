"""`python -m post_training` where accelerate shards on CPUs too, which it does on GPUs alone: there it would train as by DDP.

Started by torchrun in place of the module; all but the name of the devices is what a machine of GPUs runs.
"""

import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from post_training.__main__ import main

_begin = AcceleratorState.__init__


def _begin_as_on_gpus(self: Any, *arguments: Any, **named: Any) -> None:
    processes = PartialState()
    if processes.distributed_type == DistributedType.MULTI_CPU:  # until accelerate itself writes FSDP there
        processes.distributed_type = DistributedType.MULTI_GPU
    _begin(self, *arguments, **named)


if __name__ == "__main__":
    AcceleratorState.__init__ = _begin_as_on_gpus
    sys.exit(main())
