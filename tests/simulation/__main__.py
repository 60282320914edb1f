"""Histories from the command line, from the folder ``tests``.

``python -m simulation 7`` prints what happens in the history of seed 7; ``--first N`` runs the seeds 0 to N - 1 and
tells of those that break a promise; ``--mutants`` says which seed finds each mutant.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from simulation.history import simulate
from simulation.mutants import MUTANTS, first_to_find

SEEDS = 300
"""As many as ``make test`` runs."""
_TOLD = 10


def main() -> int:
    """Do what is asked; return 0 where every promise holds, and every mutant is found."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("seed", nargs="?", type=int, help="the history that is printed")
    asked.add_argument("--first", type=int, metavar="N", help="how many seeds are run")
    asked.add_argument("--mutants", action="store_true", help="look for each mutant")
    arguments = parser.parse_args()
    if arguments.mutants:
        return _mutants()
    if arguments.first is not None:
        return _many(arguments.first)
    history = simulate(arguments.seed)
    print("\n".join(history.events))
    return 1 if history.violations else 0


def _broken(seed: int) -> tuple[int, list[str]]:
    history = simulate(seed)
    return seed, history.events[-_TOLD:] if history.violations else []


def _many(seeds: int) -> int:
    broken = 0
    with ProcessPoolExecutor() as pool:
        for seed, events in pool.map(_broken, range(seeds), chunksize=10):
            if events:
                broken += 1
                print(f"seed {seed}:", *events, sep="\n  ", flush=True)
    print(f"{seeds} histories, {broken} break a promise")
    return 1 if broken else 0


def _mutants() -> int:
    missed = 0
    for name in MUTANTS:
        began = time.process_time()
        found = first_to_find(name, range(SEEDS))
        missed += found is None
        words = "NOT FOUND" if found is None else f"seed {found.seed}: {found.rule}: {found.words}"
        print(f"{name:36} {time.process_time() - began:5.1f} s  {words}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
