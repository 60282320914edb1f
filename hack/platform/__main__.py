"""The command line: `python3 -m hack.platform COMMAND`, from the repository's root."""

import argparse
import signal
import sys

from hack.cluster import instance as instances
from hack.cluster.errors import ClusterError
from hack.platform import kueue
from hack.platform.parts import PARTS, up


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m hack.platform", description="Queue, workflows, metrics and tracking on a cluster built here."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parts = argparse.ArgumentParser(add_help=False)
    parts.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    commands.add_parser("build", parents=[parts], help="build what is not in the cache yet")
    install = commands.add_parser("up", parents=[parts], help="install them on a cluster, or see that they are")
    install.add_argument("--name", default="demo", help="the cluster (default: %(default)s)")
    return parser


def _wanted(named: list[str]) -> list[str]:
    """The parts that were asked for; of all, Kueue is left out where its source is missing, and that is said.

    Raises: ClusterError for an unknown name.
    """
    if unknown := [name for name in named if name not in PARTS]:
        raise ClusterError(f"unknown: {', '.join(unknown)}; known: {', '.join(PARTS)}")
    if not named and (why := kueue.absent()):
        print(f"WITHOUT KUEUE: {why}", file=sys.stderr)
        return [name for name in PARTS if PARTS[name] is not kueue]
    return named or list(PARTS)


def main() -> int:
    # It unwinds like Ctrl-C does, so that temporary files are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = _parser().parse_args()
    try:
        for name in _wanted(arguments.parts):
            if arguments.command == "build":
                PARTS[name].make()
            else:
                up(instances.load_existing(arguments.name), name)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
