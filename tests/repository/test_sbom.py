"""``make sbom``: a bill of materials names each package that the image's requirements pin, and its hashes."""

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCH = "requirements/torch-pypi.txt"
IMAGES = {"operator": (), "follower": (), "controller": (TORCH,), "trainer": (TORCH,)}


@pytest.mark.slow
def test_every_pinned_package_is_in_its_images_bill() -> None:
    subprocess.run(["make", "sbom"], cwd=ROOT, check=True, capture_output=True)
    for image, more in IMAGES.items():
        pins = "".join((ROOT / file).read_text() for file in (*more, f"requirements/{image}.txt"))
        pinned = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", pins, re.MULTILINE))
        bill = json.loads((ROOT / "dist" / f"nas-{image}.cdx.json").read_text())
        assert {part["name"]: part["version"] for part in bill["components"]} == pinned
        for part in bill["components"]:
            (where,) = part["externalReferences"]
            assert where["hashes"], part["name"]
