"""How everything that trains says what is to become of it. Anything else that a process ends with is a crash."""

DONE = 0
"""The run is complete."""
REQUEUE = 85
"""Start it again: a signal, a time limit, a hang, a device that is suspected."""
REFUSED = 93
"""Do not start it again before the configuration or the data is mended, or because RUN/stop asked for it."""
