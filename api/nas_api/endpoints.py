"""Which endpoints an installation allows: what a tenant names is dialled from pods, with keys.

Names are not resolved here. A NetworkPolicy holds what a name leads to.
"""

import ipaddress
import re
from urllib.parse import urlsplit

_LINK_LOCAL = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("fe80::/10"),
    # EC2's metadata over IPv6.
    ipaddress.ip_network("fd00:ec2::/32"),
)
_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data"})
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")


def refusal(field: str, url: str | None, *, require_tls: bool, allow_link_local: bool) -> str | None:
    """Return why an installation does not allow an endpoint, with its field and the cure; None if it does.

    Args:
        field: where it stands.
        url: None for AWS itself.
        require_tls: whether it must be https.
        allow_link_local: whether it may be at a link-local address, where clouds hand out their nodes' credentials.
    """
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError as error:
        return f"{field} is {url}, which is no URL ({error})"
    if require_tls and parts.scheme != "https":
        return f"{field} is {url}, and this installation takes https alone (storage.requireTls)"
    if not allow_link_local and _is_link_local(parts.hostname or ""):
        return (
            f"{field} is {url}, a link-local address, at which clouds hand out their nodes' credentials; this"
            " installation allows none (storage.allowLinkLocal)"
        )
    return None


def _is_link_local(host: str) -> bool:
    if host.rstrip(".") in _METADATA_NAMES:
        return True
    address = _address(host)
    return address is not None and any(address in network for network in _LINK_LOCAL)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a host is, in every way of writing it that a C library takes; None for a name."""
    parts = host.split(".")
    if len(parts) <= 4 and all(_NUMBER.fullmatch(part) for part in parts):
        numbers = [_number(part) for part in parts]
        # The last number fills what the others leave: 169.254.43518 and 2852039166 are 169.254.169.254.
        *heads, last = numbers
        value = last + sum(head << (24 - 8 * index) for index, head in enumerate(heads))
        return ipaddress.IPv4Address(value) if value < 2**32 else None
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _number(text: str) -> int:
    if text[:2] in ("0x", "0X"):
        return int(text[2:] or "0", 16)
    # An 8 or a 9 behind a 0 is no octal number, and no address.
    octal = len(text) > 1 and text[0] == "0" and not set(text) & set("89")
    return int(text, 8 if octal else 10)
