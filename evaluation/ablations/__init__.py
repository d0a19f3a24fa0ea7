"""Ablations: single changes to a baseline, each trained, scored, and compared with what another seed would have changed."""
