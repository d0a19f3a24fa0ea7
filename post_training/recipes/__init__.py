"""The recipes: mid-training, SFT, preference optimisation and GRPO over TRL. Stands behind preparation, before merging.

config.py --> ranks.py (processes) --> prepare.py (data) --> arguments.py (ours -> TRL's) --> trainers.py (TRL's trainers)
--> run.py (the loop's beginning and end) with callbacks.py, metrics.py, checkpoints.py beside it; grpo.py: rewards for TRL
"""
