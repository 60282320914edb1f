"""The command line: `python3 -m hack.cluster COMMAND`, from the repository's root."""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

from hack.cluster import binaries, deps, images, lifecycle, node, oci
from hack.cluster import instance as instances
from hack.cluster.errors import ClusterError
from hack.cluster.paths import REPOSITORY


def _kwok(value: str) -> int:
    kind, _, count = value.partition(":")
    if kind != "kwok" or not count.isdigit() or int(count) < 1:
        raise argparse.ArgumentTypeError("expected kwok:N, such as kwok:10")
    return int(count)


def _extra(value: str) -> tuple[Path, str]:
    file, _, place = value.partition(":")
    if not place.startswith("/"):
        raise argparse.ArgumentTypeError("expected FILE:/PATH/IN/IMAGE")
    return Path(file), place


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m hack.cluster", description="A real Kubernetes on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default="demo", help="the cluster (default: %(default)s)")

    build = commands.add_parser("build", help="build the programs that are not in the cache yet")
    build.add_argument(
        "programs",
        nargs="*",
        metavar="PROGRAM",
        help=f"of {', '.join(binaries.BINARIES)} (default: all but {', '.join(binaries.PLATFORM)})",
    )

    commands.add_parser("deps", help="install missing Debian packages")

    up = commands.add_parser("up", parents=[named], help="bring a cluster up, or see that it is")
    up.add_argument("--control-plane-only", action="store_true", help="no real node; needs no root")
    up.add_argument("--nodes", type=_kwok, default=0, metavar="kwok:N", help="so many fake nodes, played by kwok")
    up.add_argument("--tuned-for-load", action="store_true", help="higher client limits and more workers")
    up.add_argument("--audit-log", default="", metavar="FILE", help="a line per API request, at Metadata level")

    commands.add_parser("down", parents=[named], help="remove a cluster without a trace")
    commands.add_parser("status", help="list clusters and their processes; exit 1 when one is not healthy")
    commands.add_parser("kubeconfig", parents=[named], help="print the path of the admin's kubeconfig")
    commands.add_parser("env", parents=[named], help='print export lines: eval "$(python3 -m hack.cluster env)"')
    run_with = commands.add_parser("run-with", parents=[named], help="run a command with the cluster's environment")
    run_with.add_argument("words", nargs=argparse.REMAINDER, metavar="-- WORD")

    load = commands.add_parser("load-image", parents=[named], help="import OCI archives into the real node")
    load.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE")

    gpus = commands.add_parser("gpus", parents=[named], help="advertise N of nvidia.com/gpu on every node")
    gpus.add_argument("count", type=int, metavar="N")

    image = commands.add_parser("image-from-binary", help="write an OCI archive that holds one static binary")
    image.add_argument("reference", metavar="NAME", help="such as localhost/s3:1")
    image.add_argument("binary", type=Path, help="a file, or the name of a built program")
    image.add_argument("out", type=Path, metavar="OUT.tar")
    image.add_argument("--user", default="65532", metavar="UID")
    image.add_argument("--extra", type=_extra, action="append", default=[], metavar="FILE:PATH")

    commands.add_parser("base-image", help=f"make {images.BASE_IMAGE}, on which images are built here")

    built = commands.add_parser("image", parents=[named], help="build a target of the Dockerfile and load it")
    built.add_argument("target", metavar="TARGET", help="a stage of the Dockerfile")
    built.add_argument("reference", metavar="TAG", help="such as localhost/nas-operator:dev")
    built.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    built.add_argument("--no-load", action="store_true", help="only build it, and print the archive's path")
    built.set_defaults(folder=REPOSITORY)

    other = commands.add_parser("image-from-folder", parents=[named], help="build another folder's Dockerfile, load it")
    other.add_argument("folder", type=Path, metavar="FOLDER")
    other.add_argument("reference", metavar="TAG", help="such as localhost/half-circles:1")
    other.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    other.add_argument("--no-load", action="store_true", help="only build it, and print the archive's path")
    other.set_defaults(target=None)
    return parser


def _build_image(arguments: argparse.Namespace) -> None:
    instance = None if arguments.no_load else instances.load_existing(arguments.name)
    archive = images.build(arguments.target, arguments.reference, arguments.build_arg, arguments.folder)
    if instance is None:
        print(archive)
    else:
        images.load_if_new(instance, arguments.reference, archive)


def _image_from_binary(arguments: argparse.Namespace) -> None:
    binary: Path = arguments.binary
    if str(binary) in binaries.BINARIES:
        binaries.ensure([str(binary)])
        binary = binaries.BINARIES[str(binary)].path
    if not binary.is_file():
        raise ClusterError(f"no such file or program: {binary}")
    oci.write_image(arguments.reference, binary, arguments.out, arguments.user, arguments.extra)


def _run_with(arguments: argparse.Namespace) -> None:
    words: list[str] = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not words:
        raise ClusterError("run-with: no command was given")
    environment = {**os.environ, **lifecycle.environment(instances.load_existing(arguments.name))}
    try:
        os.execvpe(words[0], words, environment)
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]}: no such command") from error


def _run(arguments: argparse.Namespace) -> int:
    command = arguments.command
    if command == "build":
        binaries.ensure(arguments.programs or binaries.DEFAULT)
    elif command == "deps":
        deps.ensure(deps.ALL)
    elif command == "up":
        has_node = not arguments.control_plane_only
        audit = str(Path(arguments.audit_log).resolve()) if arguments.audit_log else ""
        lifecycle.up(lifecycle.Wanted(arguments.name, has_node, arguments.nodes, arguments.tuned_for_load, audit))
    elif command == "down":
        lifecycle.down(arguments.name)
    elif command == "status":
        return 0 if lifecycle.status() else 1
    elif command == "kubeconfig":
        print(instances.load_existing(arguments.name).kubeconfig)
    elif command == "env":
        for name, value in lifecycle.environment(instances.load_existing(arguments.name)).items():
            print(f"export {name}={shlex.quote(value)}")
    elif command == "run-with":
        _run_with(arguments)
    elif command == "load-image":
        for archive in arguments.archives:
            node.load_image(instances.load_existing(arguments.name), archive)
    elif command == "gpus":
        node.advertise_gpus(instances.load_existing(arguments.name), arguments.count)
    elif command == "image-from-binary":
        _image_from_binary(arguments)
    elif command == "base-image":
        images.make_base_image()
    elif command in ("image", "image-from-folder"):
        _build_image(arguments)
    return 0


def main() -> int:
    # It unwinds like Ctrl-C does, so that temporary files are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = _parser().parse_args()
    try:
        return _run(arguments)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; `down` removes what was begun", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
