"""The trainer's sections of a configuration, light to import (no torch, no Megatron-Core); config.py joins them."""
