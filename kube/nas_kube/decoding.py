"""From the API server's bytes to plain values, however deep somebody has nested them. Pure.

The API server takes objects of 10,000 levels; every decoder that recurses gives up long before that, and with it
whatever list or watch the object is in. Here, what lies too deep is cut off, and everything else is read.
"""

import re
from typing import Any

from pydantic_core import from_json

DEEPEST = 100
"""Levels that are read of what the decoder cannot bear whole, counted from the list or event that an object is in. No
object of Kubernetes comes near; a template of ours may have 32."""

# The next bracket, and before it whatever is none, strings as a whole.
_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+"?)*+([\[\]{}])', re.DOTALL)
_OPEN = frozenset(b"[{")


def decode(data: bytes) -> Any:
    """Return a JSON document; what lies deeper than ``DEEPEST`` levels may be null instead.

    Raises:
        ValueError: it is none.
    """
    try:
        # It refuses more than 200 levels, with which nothing of ours could run out of stack either.
        return from_json(data)
    except ValueError:
        return from_json(cut(data))


def cut(data: bytes) -> bytes:
    """Return a JSON document with null in place of each list and map that has ``DEEPEST`` others around it."""
    kept: list[bytes] = []
    depth = start = end = 0
    while found := _BRACKET.match(data, end):
        end = found.end()
        if data[end - 1] in _OPEN:
            depth += 1
            if depth == DEEPEST + 1:
                kept += (data[start : end - 1], b"null")
        else:
            depth -= 1
            if depth == DEEPEST:
                start = end
    return b"".join((*kept, data[start:]))
