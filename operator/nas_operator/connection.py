"""kopf's connection to the API server: our own client's credentials, and our door in front of kopf's decoder.

kopf decodes answers by itself, with a decoder that gives up on what the API server bears, and a watch that it cannot
decode ends it. So it gets a session of aiohttp whose answers hold nothing but what ``Intake`` lets in.
"""

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import kopf

from nas_kube.client import KubeClient
from nas_kube.decoding import decode

Object = dict[str, Any]
Keep = Callable[[Object], Object | None]


def connection(client: KubeClient, keep: Keep) -> kopf.AiohttpSession:
    """Return our client's connection for kopf, which asks again when the token is old. Called in the event loop.

    Args:
        client: whose server and credentials.
        keep: what is kept of an object of a list or watch; None: it is left out.
    """
    configuration = client.configuration
    bearer = configuration.auth_settings().get("BearerToken")
    scheme, _, token = bearer["value"].partition(" ") if bearer else ("", "", "")
    # The kubelet renews a pod's token well before its hour is over.
    expiration = datetime.now(UTC) + timedelta(minutes=10) if token else None
    info = kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        scheme=scheme.capitalize() or None,
        token=token.strip() or None,
    )

    class Response(aiohttp.ClientResponse):
        """An answer as ``keep`` lets it in."""

        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            await super().start(connection)
            if self.url.query.get("watch") == "true" and self.status == 200:
                self.content = _Events(self.content, keep)  # type: ignore[assignment]
            return self

        async def json(self, **_: Any) -> Any:
            document = _decoded(await self.read())
            if isinstance(items := document.get("items"), list):
                document["items"] = [kept for item in items if (kept := keep(item)) is not None]
            return document

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        response_class=Response,
    )
    return kopf.AiohttpSession(server=info.server, expiration=expiration, aiohttp_session=session)


class _Events:
    """The content of a watch's answer, read as kopf reads it; everything else of it is the stream's own."""

    def __init__(self, stream: aiohttp.StreamReader, keep: Keep) -> None:
        self._stream = stream
        self._keep = keep

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Yield whole lines, each of which is an event; those of objects that cannot be read are left out."""
        parts: list[bytes] = []
        async for chunk in self._stream.iter_chunked(size):
            *lines, rest = chunk.split(b"\n")
            if lines:
                yield b"".join(self._event(line) for line in (b"".join((*parts, lines[0])), *lines[1:]))
                parts.clear()
            parts.append(rest)
        yield self._event(b"".join(parts))

    def _event(self, line: bytes) -> bytes:
        if not line:
            return b""
        event = _decoded(line)
        if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
            kept = self._keep(event["object"])
            if kept is None:
                return b""
            event = {**event, "object": kept}
        return json.dumps(event).encode() + b"\n"


def _decoded(data: bytes) -> Object:
    try:
        document: Object = decode(data)
    except ValueError as error:
        # A connection that broke off, say; kopf then makes another one.
        raise aiohttp.ClientPayloadError(f"the answer is no JSON: {error}") from error
    return document
