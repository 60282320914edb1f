"""The raw client: one method per verb, on the official client's configuration and connection pool."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import kubernetes.client
import kubernetes.config
import urllib3
import yaml
from urllib3.exceptions import HTTPError

from nas_kube.decoding import decode
from nas_kube.errors import ApiError, ApiUnavailable, KubeConfigError
from nas_kube.resources import Resource

_SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_CONNECT_SECONDS = 5.0
# One page of a list: small enough that the server need not hold thousands of Jobs in one answer,
_PAGE = 500
# nor we more than a few MB: an object may have 1.5 MB, and decoded twenty times as much.
_PAGE_BYTES = 2 * 1024 * 1024

# The package ships no types for its configuration loaders.
_loaders: Any = kubernetes.config

Object = dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """The objects of a collection at one resource version, from which a watch can go on."""

    items: list[Object]
    resource_version: str


class KubeClient:
    """Calls the API server. Safe to use from several threads.

    Every call is tried once: whoever calls knows whether to repeat it (see ``KubeError.retryable``). Every
    method raises ApiError when the server refuses and ApiUnavailable when it does not answer in time.
    """

    def __init__(
        self,
        configuration: Any,
        *,
        namespace: str = "default",
        timeout_seconds: float = 30.0,
        pool_size: int = 16,
        user_agent: str = "nas-operator",
    ) -> None:
        """Use a ``kubernetes.client.Configuration``.

        Args:
            configuration: host, TLS and credentials; its refresh hook is honoured, so a rotated token file
                is read again.
            namespace: the namespace that the configuration's context names, for ``self.namespace``.
            timeout_seconds: the longest wait for an answer.
            pool_size: connections kept open; more may be in use at once.
            user_agent: how we appear in audit logs.
        """
        configuration.connection_pool_maxsize = pool_size
        # A peer that vanished without a word is noticed by the kernel, even while a watch is silent.
        configuration.keep_alive = True
        self.namespace = namespace
        self._configuration = configuration
        self._host = configuration.host.rstrip("/")
        self._pool: urllib3.PoolManager = kubernetes.client.ApiClient(configuration).rest_client.pool_manager
        self._timeout_seconds = timeout_seconds
        self._user_agent = user_agent
        self._page_sizes: dict[str, int] = {}
        """How many objects a page has, where that is fewer than usual because some are large."""

    @classmethod
    def from_environment(cls, *, context: str | None = None, **options: Any) -> "KubeClient":
        """Return a client for the cluster at hand: ``$KUBECONFIG``, else a pod's own, else ``~/.kube/config``.

        Args:
            context: a context of the kubeconfig; naming one rules the pod's own out.
            options: as for the constructor.

        Raises:
            KubeConfigError: none of them is there, or it cannot be read.
        """
        if not os.environ.get("KUBECONFIG") and context is None:
            configuration = kubernetes.client.Configuration()
            try:
                _loaders.load_incluster_config(client_configuration=configuration)
                namespace = _SERVICE_ACCOUNT_NAMESPACE.read_text().strip()
            except (_loaders.ConfigException, OSError):
                pass  # Not in a pod: the kubeconfig decides.
            else:
                return cls(configuration, namespace=namespace, **options)
        return cls.from_kubeconfig(context=context, **options)

    @classmethod
    def from_kubeconfig(cls, file: Path | None = None, *, context: str | None = None, **options: Any) -> "KubeClient":
        """Return a client for a context of a kubeconfig: the current one, of ``$KUBECONFIG``, when not named.

        Raises:
            KubeConfigError: there is no such file or context, or it cannot be read.
        """
        configuration = kubernetes.client.Configuration()
        # Read here: the official client reads the variable only once, when it is imported.
        named = str(file) if file is not None else os.environ.get("KUBECONFIG")
        where = {"config_file": named} if named else {}
        try:
            contexts, active = _loaders.list_kube_config_contexts(**where)
            chosen = next((item for item in contexts if item["name"] == context), active)
            _loaders.load_kube_config(client_configuration=configuration, context=context, **where)
        except (_loaders.ConfigException, OSError) as error:
            raise KubeConfigError(f"no cluster to talk to: {error}") from error
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, AttributeError) as error:
            # The loader takes for granted that it is YAML, and of the right shape down to the items of its lists.
            words = " ".join(str(error).split())
            raise KubeConfigError(
                f"no cluster to talk to: {named or 'the file'} is not a kubeconfig ({words})"
            ) from error
        return cls(configuration, namespace=chosen["context"].get("namespace", "default"), **options)

    @property
    def configuration(self) -> Any:
        """The ``kubernetes.client.Configuration`` in use, for frameworks that connect by themselves."""
        return self._configuration

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """Return one object."""
        return self._json("GET", resource.path(namespace, name))

    def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        keep: Callable[[Object], Object | None] = lambda item: item,
    ) -> Listing:
        """Return the objects of a namespace, or of all namespaces, read page by page.

        Args:
            resource: the collection.
            namespace: its namespace; None for all.
            label_selector: as kubectl has it.
            field_selector: as kubectl has it.
            keep: what is kept of each object, asked page by page; None: nothing.
        """
        query = {"labelSelector": label_selector, "fieldSelector": field_selector}
        items: list[Object] = []
        while True:
            page = self._page(resource.path(namespace), query)
            items += [kept for item in page.get("items") or () if (kept := keep(item)) is not None]
            token = page["metadata"].get("continue")
            if not token:
                return Listing(items, page["metadata"]["resourceVersion"])
            query["continue"] = token

    def _page(self, path: str, query: Mapping[str, str | None]) -> Object:
        """Return a page of a list; one that is too large is asked for again in halves."""
        while True:
            size = self._page_sizes.get(path, _PAGE)
            response = self._send("GET", path, {**query, "limit": str(size)}, None, "application/json", preload=False)
            try:
                data = response.read(None if size == 1 else _PAGE_BYTES)
                more = size > 1 and response.read(1)
            except HTTPError as error:
                raise ApiUnavailable(f"GET {path}: {error}") from error
            finally:
                # What is left is not waited for.
                response.close()
            if not more:
                self._page_sizes[path] = min(_PAGE, size if len(data) > _PAGE_BYTES // 4 else 2 * size)
                return _document(data, f"GET {path}")
            self._page_sizes[path] = size // 2

    def create(
        self,
        resource: Resource,
        namespace: str | None,
        body: Object,
        *,
        dry_run: bool = False,
        field_manager: str | None = None,
    ) -> Object:
        """Create an object and return it as stored; a field that the API server does not know is refused.

        Args:
            resource: the collection.
            namespace: the object's namespace.
            body: the object.
            dry_run: everything is checked (defaults, admission, quota) and nothing is kept.
            field_manager: the name under which the fields are owned.
        """
        query = {
            "dryRun": "All" if dry_run else None,
            "fieldValidation": "Strict",
            "fieldManager": field_manager,
        }
        return self._json("POST", resource.path(namespace), query, body)

    def apply(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Object,
        *,
        field_manager: str,
        force: bool = True,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        """Apply an object on the server: own exactly the fields that ``body`` has, and return the whole.

        Args:
            resource: the collection.
            namespace: the object's namespace.
            name: the object's name.
            body: apiVersion, kind, metadata.name and the fields to own. With ``metadata.resourceVersion`` the
                apply is answered 409 unless that is the object's present version. A ``metadata.uid`` is checked
                on whole objects only: the status of a custom resource takes any.
            field_manager: the name under which the fields are owned.
            force: take fields from other managers instead of answering 409.
            subresource: for example ``status``.
            dry_run: nothing is kept.
        """
        query = {
            "fieldManager": field_manager,
            "force": "true" if force else "false",
            "dryRun": "All" if dry_run else None,
        }
        path = resource.path(namespace, name, subresource)
        return self._json("PATCH", path, query, body, content_type="application/apply-patch+yaml")

    def patch(
        self, resource: Resource, namespace: str | None, name: str, body: Object, *, subresource: str | None = None
    ) -> Object:
        """Merge-patch an object (RFC 7386) and return it."""
        path = resource.path(namespace, name, subresource)
        return self._json("PATCH", path, {}, body, content_type="application/merge-patch+json")

    def delete(self, resource: Resource, namespace: str | None, name: str, *, uid: str | None = None) -> bool:
        """Delete an object and, in the background, what it owns; return whether it was there.

        With ``uid``, an object that has the name but another uid counts as not there.
        """
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            self._json("DELETE", resource.path(namespace, name), {}, body)
        except ApiError as error:
            if error.status == 404 or (error.status == 409 and uid is not None):
                return False
            raise
        return True

    def stream(self, path: str, query: Mapping[str, str | None], *, silence_seconds: float) -> "Stream":
        """Open a GET whose answer arrives line by line.

        Args:
            path: URL path.
            query: parameters; those that are None are left out.
            silence_seconds: the longest wait for the next bytes before the stream counts as broken.
        """
        timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=silence_seconds)
        return Stream(self._send("GET", path, query, None, "application/json", timeout=timeout, preload=False))

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()

    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | None] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        return _document(self._send(method, path, query or {}, body, content_type).data, f"{method} {path}")

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | None],
        body: Object | None,
        content_type: str,
        *,
        timeout: urllib3.Timeout | None = None,
        preload: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        given = {key: value for key, value in query.items() if value is not None}
        url = self._host + path + ("?" + urlencode(given) if given else "")
        headers = {"Accept": "application/json", "User-Agent": self._user_agent, **self._authorization()}
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            response = self._pool.request(
                method,
                url,
                body=None if body is None else json.dumps(body, separators=(",", ":")),
                headers=headers,
                timeout=timeout or urllib3.Timeout(connect=_CONNECT_SECONDS, read=self._timeout_seconds),
                retries=False,
                redirect=False,
                preload_content=preload,
            )
            if response.status >= 400:
                raise ApiError.from_response(response.status, response.data, response.headers.get("Retry-After"))
        except HTTPError as error:
            raise ApiUnavailable(f"{method} {path}: {error}") from error
        return response

    def _authorization(self) -> dict[str, str]:
        # Asks the configuration each time: its refresh hook reads a rotated token or runs a login helper.
        try:
            setting = self._configuration.auth_settings().get("BearerToken")
        except (OSError, _loaders.ConfigException) as error:
            # The kubelet swaps the file; a moment without one is a moment without an answer.
            raise ApiUnavailable(f"cannot read the API token: {error}") from error
        return {"Authorization": setting["value"]} if setting else {}


def _document(data: bytes, call: str) -> Object:
    try:
        document: Object = decode(data)
    except ValueError as error:
        # Something between us and the API server has answered, or the answer has no end.
        raise ApiUnavailable(f"{call}: the answer is no JSON: {error}") from error
    return document


class Stream:
    """An answer that arrives line by line; ``close`` may be called from any thread and ends the iteration."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        """Yield each line without its end, until the server ends the answer or ``close`` is called.

        Raises:
            ApiUnavailable: the connection broke or was silent for too long.
        """
        rest = b""
        try:
            for chunk in self._response.stream(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        except (HTTPError, OSError, ValueError) as error:
            # ValueError: the response was closed under our feet.
            if not self._closed:
                raise ApiUnavailable(f"the stream broke: {error}") from error
        finally:
            self._response.close()

    def close(self) -> None:
        """End the iteration soon, whatever it is doing."""
        self._closed = True
        # The errors are those of a response that has ended by itself.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self._response.shutdown()
