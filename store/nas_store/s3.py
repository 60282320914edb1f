"""S3 as a store: AWS and every server that honours ``If-None-Match`` on PUT."""

import base64
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)

from nas_api import names
from nas_api.child import S3Location
from nas_store.errors import (
    BucketNotFound,
    CredentialsRefused,
    StoreError,
    StoreUnreachable,
    StoreUnsuitable,
    TooLarge,
)
from nas_store.keys import check_key

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

_T = TypeVar("_T")

_DEFAULT_REGION = "us-east-1"
_CONNECT_SECONDS = 5
_READ_SECONDS = 20
_PIECE_BYTES = 2**20
# Tries of one call in all: a second or two of trouble is nobody's business, more is the caller's to report.
_TRIES = 4
_CONFLICT_PAUSES_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)
# Writes of one key at once by which a server is tried.
_RACERS = 8
# The ETag of nothing that we write.
_NO_ETAG = '"00000000000000000000000000000000"'
_CREDENTIAL_CODES = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "ExpiredToken",
        "Forbidden",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
        # versitygw's for an unknown access key, with status 404.
        "XAdminUserNotFound",
    }
)
_REGION_CODES = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"})
SUITABLE_STORES = "AWS S3, MinIO, Ceph and versitygw do"


@dataclass(frozen=True)
class Listed:
    """An object in a listing."""

    size: int
    """Bytes."""
    etag: str
    """Changes with the content; nothing else is promised of it."""


def is_foreign(endpoint: str) -> bool:
    """Return whether keys that are found here would sign requests to a server that the configuration here names not.

    The configuration is the environment's (``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``) or AWS's own file; AWS itself
    where those name none. Without keys nothing is signed.

    Raises:
        StoreUnreachable: the configuration, or the endpoint, cannot be used.
    """
    session = boto3.session.Session()
    try:
        region = session.region_name or _DEFAULT_REGION
        configured = session.client("s3", region_name=region).meta.endpoint_url
        return session.get_credentials() is not None and _server(endpoint) != _server(configured)
    except (ValueError, BotoCoreError) as error:
        raise StoreUnreachable(f"the configuration of AWS here cannot be used: {error}") from error


def _server(url: str) -> tuple[str, str | None, int | None]:
    """Return what of a URL tells one server from another."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


class S3Store:
    """See :class:`nas_store.Store`. Credentials come from the environment, as boto3 finds them."""

    def __init__(self, location: S3Location) -> None:
        """Prepare a client; no request is sent.

        Raises:
            StoreUnreachable: the endpoint is no URL.
        """
        self._location = location
        config = Config(
            region_name=location.region or _DEFAULT_REGION,
            s3={"addressing_style": "path" if location.path_style else "virtual"},
            # Newer default checksums are refused by many servers that are not AWS.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": _TRIES},
            max_pool_connections=32,
        )
        try:
            # A session of its own: the default one is shared, and not safe to create from two threads.
            self._client: S3Client = boto3.session.Session().client("s3", endpoint_url=location.endpoint, config=config)
        except (ValueError, BotoCoreError) as error:
            raise StoreUnreachable(f"spec.storage.s3 cannot be used: {error}") from error
        self._compares = False
        """Whether the server is known to honour If-Match on PUT."""

    def get(self, key: str, *, limit: int | None = None) -> bytes | None:
        """See :class:`nas_store.Store`."""

        def call() -> bytes | None:
            body = self._body(key, limit)
            return None if body is None else body.read()

        return self._translated(f"GET {key}", call)

    def digest(self, key: str, *, limit: int) -> str | None:
        """See :class:`nas_store.Store`."""

        def call() -> str | None:
            body = self._body(key, limit)
            if body is None:
                return None
            digest = hashlib.sha256()
            for piece in body.iter_chunks(_PIECE_BYTES):
                digest.update(piece)
            return digest.hexdigest()

        return self._translated(f"GET {key}", call)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See :class:`nas_store.Store`."""

        def call() -> bool:
            for pause in (*_CONFLICT_PAUSES_SECONDS, None):
                try:
                    self._put(key, data, IfNoneMatch="*")
                except ClientError as error:
                    if _status(error) == 412:
                        return False
                    # 409: another conditional write of this key was under way; who won is known on the next try.
                    if _status(error) != 409 or pause is None:
                        raise
                    time.sleep(pause)
                else:
                    return True
            raise AssertionError("the last try returns or raises")

        return self._translated(f"PUT {key}", call)

    def put(self, key: str, data: bytes) -> None:
        """See :class:`nas_store.Store`."""
        self._translated(f"PUT {key}", lambda: self._put(key, data))

    def replace(self, key: str, data: bytes, allowed: Callable[[], bool]) -> bool:
        """See :class:`nas_store.Store`; it can compare where the probe has found that the server honours If-Match."""

        def call() -> bool:
            for pause in (*_CONFLICT_PAUSES_SECONDS, None):
                # Before the question: whoever overtakes us afterwards has stored something else than this.
                condition = self._unchanged(key) if self._compares else {}
                if not allowed():
                    return False
                try:
                    self._put(key, data, **condition)
                except ClientError as error:
                    # Somebody else has stored there since, or we have, and the answer was lost.
                    if not condition or _status(error) not in (404, 409, 412) or pause is None:
                        raise
                    time.sleep(pause)
                else:
                    return True
            raise AssertionError("the last try returns or raises")

        return self._translated(f"PUT {key}", call)

    def copy(self, source: str, target: str, *, limit: int) -> bool:
        """See :class:`nas_store.Store`; the server copies, and what it copies is what was measured."""
        bucket = self._location.bucket

        def call() -> bool:
            try:
                found = self._client.head_object(Bucket=bucket, Key=self._key(source))
            except ClientError as error:
                if _status(error) == 404:
                    return False
                raise
            if (size := found["ContentLength"]) > limit:
                raise TooLarge(f"{source} has {size} bytes, more than {limit}")
            self._client.copy_object(
                Bucket=bucket,
                Key=self._key(target),
                CopySource={"Bucket": bucket, "Key": self._key(source)},
                CopySourceIfMatch=found["ETag"],
            )
            return True

        return self._translated(f"COPY {source}", call)

    def list(self, prefix: str) -> list[str]:
        """See :class:`nas_store.Store`."""
        return list(self.listing(prefix))

    def listing(self, prefix: str) -> dict[str, Listed]:
        """Return what the server says of all keys that begin with a prefix, sorted by key."""
        own = self._location.prefix

        def call() -> dict[str, Listed]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._location.bucket, Prefix=own + prefix
            )
            return {
                item["Key"].removeprefix(own): Listed(item["Size"], item["ETag"])
                for page in pages
                for item in page.get("Contents", [])
            }

        return dict(sorted(self._translated(f"LIST {prefix}", call).items()))

    def uri(self, key: str) -> str:
        """See :class:`nas_store.Store`."""
        return f"s3://{self._location.bucket}/{self._key(key)}"

    def probe(self) -> None:
        """See :class:`nas_store.Store`."""
        if self.get(names.PROBE) is None:
            self._race()
        if self.put_if_absent(names.PROBE, b"second"):
            raise _unsuitable("it answered two writes with If-None-Match: * of one key with success")
        self._compares = self._translated(f"PUT {names.PROBE}", self._honours_if_match)

    def _race(self) -> None:
        """Write one key many times at once: a server that looks first and writes then lets more than one through.

        Raises:
            StoreUnsuitable: it does.
        """
        start = threading.Barrier(_RACERS)

        def write(racer: int) -> bool:
            start.wait()
            return self.put_if_absent(names.PROBE, _racer(racer))

        with ThreadPoolExecutor(_RACERS, thread_name_prefix="probe") as pool:
            won = [racer for racer, first in enumerate(pool.map(write, range(_RACERS))) if first]
        if len(won) > 1:
            raise _unsuitable(f"it answered {len(won)} writes at once with If-None-Match: * of one key with success")
        if won and self.get(names.PROBE) != _racer(won[0]):
            raise _unsuitable("of writes at once with If-None-Match: * it kept another one than it said")

    def _honours_if_match(self) -> bool:
        try:
            self._put(names.PROBE, b"second", IfMatch=_NO_ETAG)
        except ClientError as error:
            if _status(error) != 412:
                # It says in some other way that it does not know this.
                return False
        else:
            return False
        try:
            self._put(names.PROBE, b"second", **self._unchanged(names.PROBE))
        except ClientError:
            # Whatever it compares, it is not what it tells of an object; or another controller is at its probe.
            return False
        return True

    def _unchanged(self, key: str) -> dict[str, Any]:
        """Return the condition that under a key there still is what there is now."""
        try:
            found = self._client.head_object(Bucket=self._location.bucket, Key=self._key(key))
        except ClientError as error:
            if _status(error) == 404:
                return {"IfNoneMatch": "*"}
            raise
        return {"IfMatch": found["ETag"]}

    def _put(self, key: str, data: bytes, **condition: Any) -> None:
        # Buckets with Object Lock demand a checksum, and this is the one that every server knows.
        checksum = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        self._client.put_object(
            Bucket=self._location.bucket, Key=self._key(key), Body=data, ContentMD5=checksum, **condition
        )

    def _body(self, key: str, limit: int | None) -> "StreamingBody | None":
        try:
            response = self._client.get_object(Bucket=self._location.bucket, Key=self._key(key))
        except ClientError as error:
            if _code(error) == "NoSuchKey":
                return None
            raise
        body, size = response["Body"], response["ContentLength"]
        if limit is not None and size > limit:
            body.close()
            raise TooLarge(f"{key} has {size} bytes, more than {limit}")
        return body

    def _key(self, key: str) -> str:
        return self._location.prefix + check_key(key)

    def _translated(self, what: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except ClientError as error:
            self._raise_refusal(what, error)
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
            raise CredentialsRefused(
                f"there are no usable credentials for bucket {self._location.bucket!r} ({error}): name a Secret with"
                f" {' and '.join(names.CREDENTIAL_KEYS)} in spec.storage.s3.credentialsSecret, or a ServiceAccount"
                " with a role"
            ) from error
        except SSLError as error:
            raise StoreUnreachable(
                f"{self._endpoint} presents a certificate that is not trusted ({error}): name its authority in"
                " spec.storage.s3.caBundle"
            ) from error
        except BotoCoreError as error:
            raise StoreUnreachable(
                f"{self._endpoint} does not answer ({what}: {error}): correct spec.storage.s3.endpoint, or repair the"
                " network or the server"
            ) from error

    @property
    def _endpoint(self) -> str:
        return self._location.endpoint or f"AWS S3 in {self._location.region or _DEFAULT_REGION}"

    def _raise_refusal(self, what: str, error: ClientError) -> NoReturn:
        code, status = _code(error), _status(error)
        words = error.response.get("Error", {}).get("Message") or code
        bucket = self._location.bucket
        translated: StoreError
        if code == "NoSuchBucket":
            translated = BucketNotFound(
                f"{self._endpoint} has no bucket {bucket!r}: create it or correct spec.storage.s3.bucket"
            )
        elif code in _REGION_CODES:
            translated = StoreUnreachable(
                f"{self._endpoint} refused {what} with {code} ({words}): correct spec.storage.s3.region"
            )
        elif code == "RequestTimeTooSkewed":
            translated = StoreUnreachable(
                f"{self._endpoint} refused {what} with {code} ({words}): set the clock of this machine, or of the S3"
                " server: they are more than a quarter of an hour apart"
            )
        elif code in _CREDENTIAL_CODES or status in (401, 403):
            translated = CredentialsRefused(
                f"{self._endpoint} refused {what} in bucket {bucket!r} with {code} ({words}): correct the Secret in"
                " spec.storage.s3.credentialsSecret, or let its owner read, write and list this bucket"
            )
        elif status == 501:
            translated = _unsuitable(f"it answered {what} with {code} ({words})")
        else:
            translated = StoreUnreachable(
                f"{self._endpoint} answered {what} with {status} {code} ({words}): look at the S3 server"
            )
        raise translated from error


def _racer(number: int) -> bytes:
    return f"first, by racer {number}".encode()


def _unsuitable(observation: str) -> StoreUnsuitable:
    return StoreUnsuitable(
        f"the S3 server of spec.storage.s3 does not honour If-None-Match on PUT ({observation}), so two controllers"
        f" could write the same log: use a store that does; {SUITABLE_STORES}"
    )


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "Unknown"))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
