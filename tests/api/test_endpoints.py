"""Which endpoints an installation allows, in every way of writing an address."""

import pytest

from nas_api.endpoints import refusal

METADATA = [
    "http://169.254.169.254",
    "http://169.254.169.254:80/latest/meta-data",
    "https://169.254.0.1",
    "http://2852039166",
    "http://0xA9FEA9FE",
    "http://0xa9.0xfe.0xa9.0xfe",
    "http://0251.0376.0251.0376",
    "http://169.254.43518",
    "http://169.16689662",
    "http://[::ffff:169.254.169.254]",
    "http://[::ffff:a9fe:a9fe]:80",
    "http://[fe80::1]",
    "http://[fd00:ec2::254]",
    "http://metadata.google.internal",
    "http://Metadata.Google.Internal./",
]
ORDINARY = [
    None,
    "http://nas-s3:7070",
    "https://s3.example",
    "http://10.0.0.5:9000",
    "http://169.253.1.1",
    "http://[fd00::1]",
    "http://4294967296999",
    "http://08.1.1.1",
    "http://169.254.169.254.example",
    "http://minio-169.example",
]


def told(url: str | None, *, require_tls: bool = False, allow_link_local: bool = False) -> str | None:
    return refusal("spec.x", url, require_tls=require_tls, allow_link_local=allow_link_local)


@pytest.mark.parametrize("url", METADATA)
def test_a_link_local_address_is_known_however_it_is_written(url: str) -> None:
    words = told(url)
    assert words is not None and words.startswith(f"spec.x is {url}, a link-local address")
    assert told(url, allow_link_local=True) is None


@pytest.mark.parametrize("url", ORDINARY)
def test_every_other_one_is_allowed(url: str | None) -> None:
    assert told(url) is None


def test_where_tls_is_required_nothing_else_is_taken() -> None:
    words = told("http://nas-s3:7070", require_tls=True)
    assert words == "spec.x is http://nas-s3:7070, and this installation takes https alone (storage.requireTls)"
    assert told("https://s3.example", require_tls=True) is None and told(None, require_tls=True) is None


def test_what_is_no_url_is_refused_as_that() -> None:
    words = told("http://[fe80")
    assert words is not None and "which is no URL" in words
