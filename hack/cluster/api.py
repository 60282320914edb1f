"""The few requests to the API server that `up` and `status` make, with the admin's certificate."""

import http.client
import json
import ssl
from typing import Any

from hack.cluster.errors import ClusterError
from hack.cluster.instance import Instance

MERGE_PATCH = "application/merge-patch+json"


class Api:
    """A client of one cluster's API server; a connection per request, since these are few."""

    def __init__(self, instance: Instance) -> None:
        pki = instance.folder / "pki"
        self._port = instance.ports["apiserver"]
        self._context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._context.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        """Status code and parsed body.

        Raises: OSError or http.client.HTTPException when the server is not to be reached.
        """
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, context=self._context, timeout=10)
        try:
            payload = None if body is None else json.dumps(body).encode()
            connection.request(method, path, payload, {"Content-Type": content_type, "Accept": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    def get(self, path: str) -> Any | None:
        """The object at this path, None if there is no such object, or no server to ask yet."""
        try:
            status, body = self.request("GET", path)
        except (OSError, http.client.HTTPException):
            return None
        return body if status == 200 else None

    def must(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """Raises: ClusterError unless the server did what was asked."""
        status, answer = self.request(method, path, body, content_type)
        if status >= 300:
            message = answer.get("message") if isinstance(answer, dict) else answer
            raise ClusterError(f"{method} {path}: {status} {message}")
        return answer

    def ready(self) -> bool:
        return self.get("/readyz") == "ok"

    def nodes(self) -> list[dict[str, Any]]:
        answer = self.get("/api/v1/nodes")
        return [] if answer is None else answer["items"]


def is_ready(node: dict[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
