"""Builds container images with buildah, without a container engine, and loads them into a cluster.

buildah's storage is our own, in the cache: the host's is not touched. Registries of packages are reached inside a build
as they are outside of it: the host's certificates, pip's index and uv are mounted while a RUN step runs. All that a
mount leaves in a layer is an empty file in its place, and that in a build stage only.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hack import torch_source
from hack.cluster import binaries, deps, leftovers, node, oci
from hack.cluster.errors import ClusterError
from hack.cluster.instance import Instance
from hack.cluster.paths import REPOSITORY, cache_folder, images_folder, locked
from hack.cluster.say import say

BASE_IMAGE = "localhost/nas-base:bookworm-1"
# Going back to what was there before a change costs no build.
_KEPT_BEFORE = 1
# Lines of a failed build in its error.
_LAST_WORDS = 20
_BUNDLE_IN_IMAGE = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Mount:
    source: Path
    target: str


def _buildah_folder() -> Path:
    return cache_folder() / "buildah"


def _command(*arguments: str) -> list[str]:
    folder = _buildah_folder()
    return ["buildah", "--root", str(folder / "root"), "--runroot", str(folder / "run"), *arguments]


def _buildah(*arguments: str) -> str:
    """Run buildah on our own storage and return what it said on standard output."""
    result = subprocess.run(_command(*arguments), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"buildah {arguments[0]} failed: {result.stderr.strip()}")
    return result.stdout


def _bud(arguments: Sequence[str], only: str) -> None:
    """Build an image. Its progress goes to standard error: the lines that begin as asked for, or else all."""
    last: deque[str] = deque(maxlen=_LAST_WORDS)
    with subprocess.Popen(
        _command("bud", *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line)
            if line.startswith(only):
                print(line, end="", file=sys.stderr, flush=True)
    if process.returncode != 0:
        raise ClusterError("buildah bud failed" + (f":\n{''.join(last)}" if only else ""))


@contextmanager
def _storage() -> Iterator[None]:
    """One build at a time; afterwards nothing stays mounted below the storage."""
    if os.geteuid() != 0:
        raise ClusterError("building images needs root")
    deps.ensure(deps.IMAGES)
    folder = _buildah_folder()
    with locked(folder):
        try:
            yield
        finally:
            leftovers.unmount(folder.resolve())


def _image_id(reference: str) -> str:
    """The identifier of an image in our storage, empty if there is none."""
    return _buildah("images", "--quiet", "--no-trunc", "--filter", f"reference={reference}").strip()


def _make_base_image() -> None:
    """Debian with Python and certificates, from Debian's packages: 16 s, once."""
    if _image_id(BASE_IMAGE):
        return
    say(f"build {BASE_IMAGE}: Debian bookworm with python3")
    with tempfile.TemporaryDirectory(dir=_buildah_folder()) as temporary:
        rootfs = Path(temporary) / "rootfs.tar"
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--include=python3,ca-certificates",
            "bookworm",
            str(rootfs),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise ClusterError(f"mmdebstrap failed:\n{result.stderr[-3000:]}")
        (Path(temporary) / "Dockerfile").write_text("FROM scratch\nADD rootfs.tar /\n")
        _buildah("bud", "--quiet", "--tag", BASE_IMAGE, temporary)
    say(f"built {BASE_IMAGE}")


def make_base_image() -> None:
    with _storage():
        _make_base_image()


def _certificates() -> Path | None:
    """The bundle that this host trusts, where OpenSSL's variable or Debian has it."""
    for candidate in (os.environ.get("SSL_CERT_FILE", ""), _BUNDLE_IN_IMAGE):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    return None


def _package_index() -> str:
    """The index that uv or pip is told to use on this host; empty for the public one."""
    for variable in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if value := os.environ.get(variable):
            return value
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _uv() -> Path | None:
    """uv itself; what is first on PATH may be a version manager's script."""
    for folder in [str(REPOSITORY / ".venv" / "bin"), *os.environ.get("PATH", "").split(":")]:
        candidate = Path(folder) / "uv"
        if candidate.is_file():
            with candidate.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    return candidate.resolve()
    return None


def _mounts(temporary: Path) -> list[Mount]:
    """What a RUN step sees of this host."""
    mounts = []
    pip = ["[global]"]
    if certificates := _certificates():
        mounts.append(Mount(certificates.resolve(), _BUNDLE_IN_IMAGE))
        pip.append(f"cert = {_BUNDLE_IN_IMAGE}")
    if index := _package_index():
        pip.append(f"index-url = {index}")
        (temporary / "uv.toml").write_text(f"[[index]]\nurl = {json.dumps(index)}\ndefault = true\n")
        mounts.append(Mount(temporary / "uv.toml", "/etc/uv/uv.toml"))
    (temporary / "pip.conf").write_text("\n".join(pip) + "\n")
    mounts.append(Mount(temporary / "pip.conf", "/etc/pip.conf"))
    if uv := _uv():
        mounts.append(Mount(uv, "/usr/local/bin/uv"))
    if wheels := torch_source.wheels_folder():
        mounts.append(Mount(wheels.resolve(), "/wheels"))
    return mounts


def build(
    target: str | None,
    reference: str,
    build_arguments: Sequence[str] = (),
    folder: Path = REPOSITORY,
    *,
    dockerfile: Path | None = None,
    only: str = "",
) -> Path:
    """Build one target of a folder's Dockerfile and return its OCI archive in the cache.

    Args:
        target: None for the last one.
        build_arguments: NAME=VALUE each; BASE_IMAGE is our own Debian unless it is among them.
        dockerfile: another than the folder's own.
        only: of buildah's progress, show no other lines than those that begin so.
    """
    given = {argument.partition("=")[0] for argument in build_arguments}
    with _storage(), tempfile.TemporaryDirectory() as temporary:
        arguments = list(build_arguments)
        if "BASE_IMAGE" not in given:
            _make_base_image()
            arguments.append(f"BASE_IMAGE={BASE_IMAGE}")
        if "TORCH_INDEX" in os.environ and "TORCH_INDEX" not in given:
            arguments.append(f"TORCH_INDEX={os.environ['TORCH_INDEX']}")
        mounts = _mounts(Path(temporary))
        say(f"build {reference}" + (f" (target {target})" if target else ""))
        words = ["--isolation=chroot", "--network=host", "--layers"]
        words += [f"--volume={mount.source}:{mount.target}:ro" for mount in mounts]
        words += [f"--build-arg={argument}" for argument in arguments]
        words += [f"--target={target}"] if target else []
        _bud([*words, f"--tag={reference}", f"--file={dockerfile or folder / 'Dockerfile'}", str(folder)], only)
        _forget_superseded(reference)
        return _archive(reference)


def _forget_superseded(reference: str) -> None:
    """Keep the newest builds of a name, so that the cache does not grow with every change of the sources."""
    listed = _buildah("images", "--json", "--filter", f"reference={reference.rpartition(':')[0]}")
    # A build whose layers were all there keeps its old date.
    others = [image for image in json.loads(listed) if reference not in image["names"]]
    for image in sorted(others, key=lambda image: image["createdatraw"], reverse=True)[_KEPT_BEFORE:]:
        # The layers that only this build used go with it.
        _buildah("rmi", "--force", image["id"])


def _stem(reference: str) -> str:
    """The beginning of the file name of an image's archive."""
    return reference.replace("/", "_").replace(":", "_")


def built(reference: str) -> Path | None:
    """The archive of an image that was built before, None if there is none."""
    return next(images_folder().glob(f"{_stem(reference)}@*.tar"), None)


def forget_other_tags(reference: str) -> None:
    """Remove the archives of an image's other tags from the cache."""
    name = reference.rpartition(":")[0]
    for archive in images_folder().glob(f"{_stem(name)}_*@*.tar"):
        if archive != built(reference):
            archive.unlink()


def of_binary(reference: str, binary: Path, place: str = "") -> Path:
    """The archive of an image that holds one static binary, made unless it is there already.

    Args:
        place: where the binary is to be; /NAME-OF-BINARY if empty.
    """
    archive = images_folder() / f"{_stem(reference)}.tar"
    if not archive.exists():
        oci.write_image(reference, binary, archive, place=place)
    return archive


def of_program(reference: str, program: str, place: str = "") -> Path:
    """The same for one of the programs that are built here."""
    binaries.ensure([program])
    return of_binary(reference, binaries.BINARIES[program].path, place)


def _archive(reference: str) -> Path:
    """Write the image as an archive, unless it is there already; older ones of the same name are removed."""
    archive = images_folder() / f"{_stem(reference)}@{_image_id(reference).removeprefix('sha256:')[:16]}.tar"
    if not archive.exists():
        images_folder().mkdir(parents=True, exist_ok=True)
        if old := built(reference):
            old.unlink()
        temporary = archive.with_name(f".{archive.name}")
        temporary.unlink(missing_ok=True)
        _buildah("push", "--quiet", reference, f"oci-archive:{temporary}:{reference}")
        temporary.rename(archive)
        say(f"wrote {archive}: {archive.stat().st_size / 1e6:.0f} MB")
    return archive


def manifest_digest(archive: Path) -> str:
    """The digest of the one image in an OCI archive."""
    with tarfile.open(archive) as tar:
        index = tar.extractfile("index.json")
        if index is None:
            raise ClusterError(f"{archive} is no OCI archive")
        manifests = json.load(index)["manifests"]
    return str(manifests[0]["digest"])


def load_if_new(instance: Instance, reference: str, archive: Path) -> None:
    """Import an image unless the node has this very one: an import of a large image takes longer than building it."""
    listed = node.ctr(instance, "images", "list", f"name=={reference}")
    if manifest_digest(archive) in listed:
        say(f"cluster {instance.name} has {reference} already")
        return
    node.load_image(instance, archive)
