"""Children that cost next to nothing, as `nas run` runs them: how many a second?

    .venv/bin/python bench/local_children.py --samples 200 --parallelism 8

A trainer of the user's own that writes a constant: what is measured is a process for each child, and the search beside
it. Prints children a second, without the first run, which starts what starts children.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from nas_api import names
from nas_cli.main import main as nas

TRAINER = '#!/bin/sh\necho \'{"metrics": {"accuracy": 0.5}}\' > "$NAS_DIR/result.json"\n'


def write(folder: Path, samples: int, parallelism: int) -> Path:
    """Write the trainer and a manifest for it; return the manifest's path."""
    program = folder / "train.sh"
    program.write_text(TRAINER)
    program.chmod(0o755)
    document = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "cheap"},
        "spec": {
            "searchSpace": {"custom": {"decisions": [{"name": "width", "range": {"from": 1, "to": 64}}]}},
            "searcher": {"random": {}, "duplicates": "Train"},
            "budget": {"samples": samples},
            "parallelism": parallelism,
            "trainer": {"dataset": {"custom": {}}, "command": ["./train.sh"]},
            "storage": {"s3": {"bucket": "none"}},
        },
    }
    path = folder / "cheap.yaml"
    path.write_text(json.dumps(document))
    return path


def main() -> int:
    """Run both searches and print the rate of the second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--parallelism", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, samples in (("warm", 1), ("run", arguments.samples)):
            manifest = write(folder, samples, arguments.parallelism)
            began = time.monotonic()
            nas(["run", str(manifest), "--folder", str(folder / name)], standalone_mode=False)
            took = time.monotonic() - began
    print(f"{arguments.samples / took:.0f} children a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
