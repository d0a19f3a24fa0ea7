"""What the model is. Importing any part of it lets megatron.core run on hosts without CUDA (see host_device.py)."""

from smol_model import host_device

host_device.register()
