#!/usr/bin/env python3
"""Answers images with the network that a search has left: a PNG or raw pixels in, the class and its probability out.

MODEL names where `best/` is: a folder, or s3://BUCKET/.../best/ as `nas submit --wait -o json` has it in `modelUri`.
Needs boto3, numpy, onnxruntime and pillow, and nothing of ours. One process without batches: for more there
are servers of models, for which `nas export --format kserve` writes the same network.
"""

import hashlib
import io
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import numpy

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # Else it tells its maker of each model, from its import on.
import onnxruntime
from botocore.exceptions import BotoCoreError, ClientError
from PIL import Image, UnidentifiedImageError

PORT = int(os.environ.get("PORT", "8080"))
LARGEST_BODY = 1 << 20


class WrongInput(Exception):
    """What was sent is no image that the network takes; the message says what it takes."""


def read(place: str, name: str) -> bytes | None:
    """Return a file of the folder or bucket, or None where there is none."""
    if not place.startswith("s3://"):
        path = Path(place) / name
        return path.read_bytes() if path.is_file() else None
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    try:
        client = boto3.client("s3")  # Endpoint, region and keys are in the environment (AWS_...).
        return client.get_object(Bucket=bucket, Key=f"{prefix.rstrip('/')}/{name}")["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return None
        sys.exit(f"{place} cannot be read: {error}")
    except (BotoCoreError, ValueError) as error:
        sys.exit(f"{place} cannot be read: {error}")


def tested(place: str, name: str, digests: dict[str, str]) -> bytes | None:
    """Return a file as it was when the network was tested, or None where there is none."""
    data = read(place, name)
    if data is not None and name in digests and hashlib.sha256(data).hexdigest() != digests[name]:
        sys.exit(f"{name} in {place} is not the file that was tested: its digest is another than provenance.json has")
    return data


class Model:
    """The network, and what it takes and gives."""

    def __init__(self, place: str) -> None:
        # It is written last: where it tells of a test, all the rest is there.
        provenance = json.loads(read(place, "provenance.json") or b"{}")
        if provenance.get("testMetric") is None:
            sys.exit(f"no trained network in {place}: it is there once spec.finalTraining has ended")
        # Digests from the search's log, which says what was tested; it has none of a trainer that reported none.
        digests = provenance.get("files") or {}
        before, network = (tested(place, name, digests) for name in ("preprocessing.json", "network.onnx"))
        if before is None:
            sys.exit(f"the network in {place} is none for images")
        self.before = json.loads(before)
        self.shape = tuple(self.before[side] for side in ("channels", "height", "width"))
        self.about = {name: provenance[name] for name in ("experiment", "uid", "sample", "digest", "testMetric")}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # Each request has a thread of its own.
        self.session = onnxruntime.InferenceSession(network, options)

    def pixels(self, body: bytes, kind: str) -> numpy.ndarray:
        """Return an image as the network takes it: (1, channels, height, width), from 0 to `brightest`."""
        channels, height, width = self.shape
        if kind == "application/octet-stream":
            if len(body) != channels * height * width:
                raise WrongInput(f"{len(body)} bytes: raw pixels are {channels} x {height} x {width}, a byte each")
            image = numpy.frombuffer(body, numpy.uint8).reshape(self.shape).astype(numpy.float32)
            if image.max() > self.before["brightest"]:
                raise WrongInput(f"a pixel of {image.max():g}: raw pixels are at most {self.before['brightest']:g}")
            return image[None]
        if kind != "image/png":
            raise WrongInput(f"content type {kind}: send image/png, or application/octet-stream for raw pixels")
        wanted = {1: "L", 3: "RGB"}[channels], (width, height)
        try:
            with Image.open(io.BytesIO(body), formats=["PNG"]) as picture:
                if (picture.mode, picture.size) != wanted:
                    raise WrongInput(f"a PNG of {picture.mode} {picture.size}: {wanted[0]} {wanted[1]} is taken")
                levels = numpy.asarray(picture, numpy.float32).reshape(height, width, channels)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise WrongInput(f"no PNG that can be read: {error}") from error
        return (levels * (self.before["brightest"] / 255)).transpose(2, 0, 1)[None]

    def answer(self, pixels: numpy.ndarray) -> dict[str, object]:
        """Return the class, and the probability of each."""
        (logits,) = self.session.run(["logits"], {"pixels": pixels})[0]
        weights = numpy.exp(logits - logits.max())
        chances = dict(zip(self.before["classes"], (weights / weights.sum()).tolist(), strict=True))
        return {"class": max(chances, key=chances.__getitem__), "probabilities": chances}


class Handler(BaseHTTPRequestHandler):
    """GET /healthz says which network answers, POST /predict asks it."""

    model: Model
    timeout = 10  # Seconds that a request may take to arrive.

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self.reply(200, self.model.about)
        else:
            self.reply(404, {"error": "GET /healthz and POST /predict are all there is"})

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if self.path != "/predict":
            self.reply(404, {"error": "GET /healthz and POST /predict are all there is"})
            return
        try:
            if not length.isdecimal() or int(length) > LARGEST_BODY:
                raise WrongInput(f"content-length must be a number of bytes up to {LARGEST_BODY}")
            pixels = self.model.pixels(self.rfile.read(int(length)), self.headers.get_content_type())
        except WrongInput as error:
            self.reply(400, {"error": str(error)})
        else:
            self.reply(200, self.model.answer(pixels))

    def reply(self, status: int, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Only what goes wrong is a line of the log."""


if __name__ == "__main__":
    # As the first process of a container it would ignore SIGTERM otherwise.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Handler.model = Model(os.environ.get("MODEL") or sys.exit("MODEL must name a folder or s3://BUCKET/.../best/"))
    server = ThreadingHTTPServer(("", PORT), Handler)
    server.daemon_threads = False  # Who has asked is answered before the end.
    with server:
        print(f"{Handler.model.about} on port {server.server_port}", flush=True)
        server.serve_forever()
