"""Searchers against each other on real small networks: the digits example, trained here by local processes.

    .venv/bin/python bench/digits_search.py --searchers random ppo guided --seeds 3 --samples 60

Prints for each searcher, over the seeds, mean and standard error of the best accuracy and of the mean accuracy of
the last 20 samples, at equal counts. The accuracies are on 397 validation images, so one image is 0.0025.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "digits.yaml"
LAST = 20


def accuracies(searcher: str, seed: int, samples: int) -> list[float]:
    """Return the accuracy of every observed sample of one search, in the order of their numbers."""
    document = yaml.safe_load(EXAMPLE.read_text())
    document["spec"] |= {"searcher": {"seed": seed, searcher: {}}, "budget": {"samples": samples}}
    nas = Path(sys.executable).with_name("nas")
    with tempfile.TemporaryDirectory() as folder:
        manifest, run = Path(folder, "experiment.json"), Path(folder, "run")
        manifest.write_text(json.dumps(document))
        subprocess.run([nas, "run", manifest, "--folder", run], check=True, stdout=subprocess.DEVNULL)
        listed = subprocess.run([nas, "samples", run, "-o", "json"], check=True, capture_output=True, text=True).stdout
    return [each["metric"] for each in map(json.loads, listed.splitlines()) if each["metric"] is not None]


def summary(values: list[float]) -> str:
    """Return mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4f} +- {error:.4f}"


def main() -> None:
    """Run the searches and print a row for each searcher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searchers", nargs="+", default=["random", "ppo", "guided"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=60)
    arguments = parser.parse_args()
    print(f"{'searcher':10}  {'best accuracy':18}  mean of the last {LAST}")
    for searcher in arguments.searchers:
        runs = [accuracies(searcher, seed, arguments.samples) for seed in range(arguments.seeds)]
        last = [statistics.mean(run[-LAST:]) for run in runs]
        print(f"{searcher:10}  {summary([max(run) for run in runs]):18}  {summary(last)}", flush=True)


if __name__ == "__main__":
    main()
