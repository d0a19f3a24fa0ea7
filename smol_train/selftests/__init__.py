"""The checks of `python -m smol_train.selftest`, one a file."""
