"""What the policies of examples/bucket-policies let a controller and a trainer do, on a server that enforces them."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from hack.cluster.network import choose_ports
from s3_server import ACCESS_KEY, SECRET_KEY, start, versitygw_binary

from nas_api import names
from nas_api.child import S3Location
from nas_store.errors import CredentialsRefused, StoreError
from nas_store.s3 import S3Store

POLICIES = Path(__file__).parents[2] / "examples" / "bucket-policies"
BUCKET = "my-bucket"
OWN = names.experiment_prefix("nas", "team-a", "digits", "12345678-0000")
SIBLING = names.experiment_prefix("nas", "team-a", "cifar", "87654321-0000")
STRANGER = names.experiment_prefix("nas", "team-b", "digits", "87654321-0000")

Open = Callable[[str, str], S3Store]


@pytest.fixture(scope="module", params=["aws", "minio"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Return a function that opens a prefix of the bucket as somebody: owner, controller or trainer.

    The server has bucket policies only: each statement gets the one whose policy it is as its principal. Of AWS's
    condition keys it does not know the one that makes conditional writes a must.
    """
    binary = versitygw_binary()
    if binary is None:
        pytest.skip("no versitygw: `python3 -m hack.cluster build` makes it")
    folder = tmp_path_factory.mktemp("policies")
    (folder / "accounts").mkdir()
    port = choose_ports(["s3"], ())["s3"]
    process = start(binary, folder, port, "--iam-dir", str(folder / "accounts"))
    endpoint = f"http://127.0.0.1:{port}"
    try:
        session = boto3.session.Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1")
        root = session.client("s3", endpoint_url=endpoint)
        root.create_bucket(Bucket=BUCKET)
        statements = []
        for who in ("controller", "trainer"):
            root_of = ["--access", ACCESS_KEY, "--secret", SECRET_KEY, "--endpoint-url", endpoint]
            user = ["--access", who, "--secret", f"secret-of-{who}", "--role", "user"]
            admin = [str(binary), "admin", *root_of, "create-user", *user]
            subprocess.run(admin, check=True, capture_output=True)
            policy = json.loads((POLICIES / request.param / f"{who}.json").read_text())
            known = [each for each in policy["Statement"] if "s3:if-none-match" not in json.dumps(each)]
            statements += [{**each, "Principal": {"AWS": [who]}} for each in known]
        root.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
        with pytest.MonkeyPatch.context() as patch:

            def open_as(who: str, prefix: str) -> S3Store:
                patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY if who == "owner" else who)
                patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY if who == "owner" else f"secret-of-{who}")
                return S3Store(S3Location(bucket=BUCKET, prefix=prefix, endpoint=endpoint))

            yield open_as
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.s3
def test_a_trainer_writes_its_samples_and_nothing_else(opened: Open) -> None:
    owner, trainer = opened("owner", OWN), opened("trainer", OWN)
    key = names.result_key(1)
    assert trainer.get(key) is None, "what is missing is not forbidden"
    assert trainer.put_if_absent(key, b"result") and not trainer.put_if_absent(key, b"other")
    trainer.put(names.checkpoint_key(1), b"checkpoint")
    trainer.put(names.weights_key(1), b"weights")
    assert trainer.get(names.checkpoint_key(1)) == b"checkpoint"
    owner.put(names.log_key(0), b"log")
    for forbidden in (
        *(names.log_key(0), names.log_key(1), names.snapshot_key(1), names.BEST_WEIGHTS, names.BEST_ARCHITECTURE),
        *(names.REPORT, names.PROBE, names.follower_key("mlflow", 0)),
    ):
        for write in (trainer.put, trainer.put_if_absent):
            with pytest.raises(CredentialsRefused):
                write(forbidden, b"forged")
    for prefix in (SIBLING, STRANGER):
        other = opened("trainer", prefix)
        with pytest.raises(CredentialsRefused):
            other.put(names.result_key(1), b"forged")
        with pytest.raises(CredentialsRefused):
            other.get(names.log_key(0))
    with pytest.raises(StoreError):
        trainer.get(names.log_key(0))
    assert owner.get(names.log_key(0)) == b"log"


@pytest.mark.s3
def test_a_controller_does_all_that_a_search_needs(opened: Open) -> None:
    controller, trainer = opened("controller", OWN), opened("trainer", OWN)
    controller.probe()
    assert controller.put_if_absent(names.log_key(7), b"log")
    assert controller.list("log/")[-1] == names.log_key(7)
    trainer.put(names.weights_key(7), b"weights")
    assert controller.copy(names.weights_key(7), names.BEST_WEIGHTS, limit=7)
    assert controller.get(names.BEST_WEIGHTS) == b"weights"
    assert controller.digest(names.weights_key(7), limit=7) is not None
    assert not controller.copy(names.onnx_key(7), names.BEST_ONNX, limit=7)
    assert controller.get(names.result_key(8)) is None
    opened("owner", SIBLING).put(names.log_key(0), b"earlier")
    sibling = opened("controller", SIBLING)
    assert sibling.get(names.log_key(0)) == b"earlier", "for a warm start"
    with pytest.raises(CredentialsRefused):
        sibling.put(names.log_key(1), b"forged")
    with pytest.raises(CredentialsRefused):
        opened("controller", STRANGER).put(names.log_key(1), b"forged")


@pytest.mark.s3
def test_nobody_removes_anything(opened: Open) -> None:
    opened("owner", OWN).put(names.log_key(3), b"log")
    for who in ("controller", "trainer"):
        store = opened(who, OWN)
        with pytest.raises(store._client.exceptions.ClientError, match="AccessDenied"):
            store._client.delete_object(Bucket=BUCKET, Key=OWN + names.log_key(3))
