"""Objects of tensors in a store: safetensors, never pickle, so that reading one can run no code. Needs no torch."""

import json


def metadata(data: bytes) -> dict[str, str]:
    """Return what the header of a safetensors file says beside its tensors, by name.

    The library reads it from files on a disk only.

    Raises:
        ValueError: there is no such header.
    """
    # Its length in 8 bytes, then JSON.
    length = int.from_bytes(data[:8], "little")
    try:
        found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    except (KeyError, TypeError) as error:
        raise ValueError("its header has no metadata") from error
    return found
