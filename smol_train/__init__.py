"""What a run does. smol_model comes first: it lets megatron.core run on hosts without CUDA."""

import smol_model  # noqa: F401
