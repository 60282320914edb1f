"""Replays one seed and prints its history: ``python -m simulation SEED`` (from ``tests/``)."""

import sys

from simulation.history import simulate

history = simulate(int(sys.argv[1]))
print("\n".join(history.events))
