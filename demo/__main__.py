"""`make demo`, `make paper`, `make images` and `make down`: from sources to whole searches on a real cluster.

Standard library only, so that it runs before anything is installed.
"""

import argparse
import os
import signal
import sys

from hack.cluster.errors import ClusterError

from demo.demo import Demo
from demo.images import CUDA, image_tag, wanted
from demo.paper import paper, twins
from demo.places import Current, choose
from demo.steps import DemoError, Steps


def main() -> int:
    """Run the demonstration or the paper's twins, or remove them; return the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m demo", description="Whole searches on a real cluster.")
    parser.add_argument("command", choices=["demo", "paper", "down", "images"])
    parser.add_argument(
        "twins", nargs="*", metavar="TWIN", help="for paper: which of examples/paper (default: every *-small.yaml)"
    )
    parser.add_argument("--cluster", default=os.environ.get("CLUSTER", ""), choices=["", "built", "kind", "current"])
    parser.add_argument("--name", default="demo", help="name of the cluster (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.twins and arguments.command != "paper":
        parser.error(f"{arguments.command} takes no names of twins")
    # As Ctrl-C does, so that what hack/cluster has begun is unwound.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    steps = Steps()
    try:
        if unknown := sorted(set(arguments.twins) - set(twins())):
            raise DemoError(f"no twin is named {', '.join(unknown)}: choose from {', '.join(twins())}")
        place = choose(arguments.cluster, arguments.name)
        if arguments.command == "down":
            place.down()
            return 0
        if arguments.command == "images":
            if isinstance(place, Current):
                raise DemoError("images are built for CLUSTER=built or CLUSTER=kind")
            steps.step("images, built and loaded", place.load_images)
            if CUDA in wanted(os.environ):
                steps.say(f"    for nodes with GPUs, as trainer.image: localhost/nas-{CUDA}:{image_tag(CUDA)}")
            return 0
        demo = Demo(place, steps)
        place.prepare(steps)
        steps.step("chart with an embedded S3", demo.install)
        if arguments.command == "paper":
            paper(place, steps, arguments.twins or twins())
        else:
            steps.step("search", demo.search)
            demo.show()
        steps.say("done; `make down` removes the cluster")
    except (DemoError, ClusterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on, `make down` removes the cluster", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
