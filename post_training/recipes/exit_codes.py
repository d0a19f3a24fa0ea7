"""How a recipe says what is to become of it: the numbers of smol_train/exit_codes.py, which slurm/run.sh knows.

Written down again because nothing here imports the trainer of pre-training; a test compares them.
"""

DONE = 0
"""The run is complete."""
REQUEUE = 85
"""Start it again: a signal."""
REFUSED = 93
"""Do not start it again before the configuration or the data is mended, or because RUN/stop asked for it."""
