"""Writes a container image of static binaries as an OCI archive, with nothing but the standard library.

The same input gives the same bytes: no times, no user names.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath


def _directory(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE
    entry.mode = 0o755
    return entry


def _layer(files: Sequence[tuple[Path, str]]) -> bytes:
    """A tar of the files at their places, executable if they are, with the folders above them and an open /tmp."""
    buffer = io.BytesIO()
    folders: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as layer:
        temporary = _directory("tmp")
        temporary.mode = 0o1777
        layer.addfile(temporary)
        for source, place in files:
            target = PurePosixPath(place.lstrip("/"))
            for parent in reversed(target.parents):
                if str(parent) not in (".", "tmp") and str(parent) not in folders:
                    folders.add(str(parent))
                    layer.addfile(_directory(str(parent)))
            content = source.read_bytes()
            entry = tarfile.TarInfo(str(target))
            entry.size = len(content)
            entry.mode = 0o755 if source.stat().st_mode & 0o100 else 0o644
            layer.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class _Archive:
    """An OCI image layout under construction: blobs by their digest."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def add(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        entry.mode = 0o644
        self._archive.addfile(entry, io.BytesIO(content))

    def blob(self, media_type: str, content: bytes) -> dict[str, object]:
        """Add a blob and return its descriptor."""
        digest = hashlib.sha256(content).hexdigest()
        self.add(f"blobs/sha256/{digest}", content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def write_image(
    name: str,
    binary: Path,
    out: Path,
    user: str = "65532",
    extra: Sequence[tuple[Path, str]] = (),
    architecture: str = "amd64",
    place: str = "",
) -> None:
    """Write an image that holds one static binary, its entry point, and any extra files.

    Args:
        name: the full reference, such as localhost/pause:1.
        user: the numeric user it runs as, so that runAsNonRoot can be checked.
        extra: files and their places in the image.
        place: where the binary is to be; /NAME-OF-BINARY if empty.
    """
    place = place or f"/{binary.name}"
    layer = _layer([(binary, place), *extra])
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": [place], "User": user, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    with tarfile.open(temporary, "w") as tar:
        archive = _Archive(tar)
        archive.add("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": archive.blob("application/vnd.oci.image.config.v1+json", json.dumps(config).encode()),
            "layers": [archive.blob("application/vnd.oci.image.layer.v1.tar", layer)],
        }
        descriptor = archive.blob("application/vnd.oci.image.manifest.v1+json", json.dumps(manifest).encode())
        descriptor["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
        index = {"schemaVersion": 2, "manifests": [descriptor]}
        archive.add("index.json", json.dumps(index).encode())
    temporary.rename(out)
