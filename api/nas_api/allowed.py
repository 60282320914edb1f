"""Rules for a part of a document, each of which Python and the API server's CEL decide alike.

A rule names what it does not let through by its place. The same rule as an expression in CEL goes into the chart's
admission policy, so that there is one list and not two. No rule goes deeper than it is written, however deep the
document is.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Named = Callable[[str], str]
"""Returns the expression that is true if the author may read the Secret that another expression names."""

_LONGEST_KEY = 63
_ORDINARY_KEY = re.compile(r"[\w./-]+", re.ASCII)


class Rule(Protocol):
    """What a value must be."""

    def faults(self, value: Any, place: str) -> Iterator[str]:
        """Yield the places, below ``place``, of what the rule does not let through."""
        ...

    def cel(self, value: str, named: Named) -> str:
        """Return the expression that is true if the rule lets the value of an expression through.

        What is of another type than it must be may be an error instead, which the policy takes for false.
        """
        ...


@dataclass(frozen=True)
class Anything:
    """Whatever it is."""

    def faults(self, value: Any, place: str) -> Iterator[str]:
        """See :class:`Rule`."""
        return iter(())

    def cel(self, value: str, named: Named) -> str:
        """See :class:`Rule`."""
        return "true"


@dataclass(frozen=True)
class OneOf:
    """One of some values, of the same type."""

    values: tuple[str | bool, ...]

    def faults(self, value: Any, place: str) -> Iterator[str]:
        """See :class:`Rule`."""
        # True == 1 in Python, and nowhere else.
        if not any(type(value) is type(option) and value == option for option in self.values):
            yield place

    def cel(self, value: str, named: Named) -> str:
        """See :class:`Rule`."""
        return f"{value} in {_list(self.values)}"


@dataclass(frozen=True)
class Positive:
    """An integer above 0: the id of a user or a group other than root's."""

    def faults(self, value: Any, place: str) -> Iterator[str]:
        """See :class:`Rule`."""
        if type(value) is not int or value <= 0:
            yield place

    def cel(self, value: str, named: Named) -> str:
        """See :class:`Rule`."""
        return f"type({value}) == int && {value} > 0"


@dataclass(frozen=True)
class Unlike:
    """A word that begins with none of these."""

    prefixes: tuple[str, ...]

    def faults(self, value: Any, place: str) -> Iterator[str]:
        """See :class:`Rule`."""
        if not isinstance(value, str) or value.startswith(self.prefixes):
            yield place

    def cel(self, value: str, named: Named) -> str:
        """See :class:`Rule`."""
        return f"type({value}) == string && {_unlike(value, self.prefixes)}"


@dataclass(frozen=True)
class KeysUnlike:
    """A map, none of whose keys begins with one of these."""

    prefixes: tuple[str, ...]

    def faults(self, value: Any, place: str) -> Iterator[str]:
        """See :class:`Rule`."""
        if not isinstance(value, Mapping):
            yield place
            return
        yield from (_below(place, key) for key in value if not isinstance(key, str) or key.startswith(self.prefixes))

    def cel(self, value: str, named: Named) -> str:
        """See :class:`Rule`."""
        return f"type({value}) == map && {value}.all(key, {_unlike('key', self.prefixes)})"


@dataclass(frozen=True)
class Without:
    """A map without a key."""

    key: str

    def faults(self, value: Any, place: str) -> Iterator[str]:
        """See :class:`Rule`."""
        if not isinstance(value, Mapping) or self.key in value:
            yield _below(place, self.key)

    def cel(self, value: str, named: Named) -> str:
        """See :class:`Rule`."""
        return f"type({value}) == map && !('{self.key}' in {value})"


@dataclass(frozen=True)
class Holds:
    """A list in which a word stands."""

    word: str

    def faults(self, value: Any, place: str) -> Iterator[str]:
        """See :class:`Rule`."""
        if not isinstance(value, list) or self.word not in value:
            yield place

    def cel(self, value: str, named: Named) -> str:
        """See :class:`Rule`."""
        return f"type({value}) == list && '{self.word}' in {value}"


@dataclass(frozen=True)
class Each:
    """A list, each of whose items is let through."""

    rule: Rule
    item: str
    """What CEL calls an item; no other name around it is the same."""

    def faults(self, value: Any, place: str) -> Iterator[str]:
        """See :class:`Rule`."""
        if not isinstance(value, list):
            yield place
            return
        for index, item in enumerate(value):
            yield from self.rule.faults(item, f"{place}[{index}]")

    def cel(self, value: str, named: Named) -> str:
        """See :class:`Rule`."""
        return f"type({value}) == list && {value}.all({self.item}, {self.rule.cel(self.item, named)})"


@dataclass(frozen=True)
class Fields:
    """A map with these keys at most, each of whose values is let through."""

    allowed: Mapping[str, Rule]
    key: str
    """What CEL calls a key; no other name around it is the same."""

    def faults(self, value: Any, place: str) -> Iterator[str]:
        """See :class:`Rule`."""
        if not isinstance(value, Mapping):
            yield place
            return
        for key, item in value.items():
            rule = self.allowed.get(key)
            if rule is None:
                yield _below(place, key)
            else:
                yield from rule.faults(item, _below(place, key))

    def cel(self, value: str, named: Named) -> str:
        """See :class:`Rule`."""
        return f"type({value}) == map && {value}.all({self.key}, {self.let_through(value, named)})"

    def let_through(self, value: str, named: Named) -> str:
        """Return the expression that is true if the key of that name, and what it has in ``value``, are let through."""
        free = tuple(key for key, rule in self.allowed.items() if isinstance(rule, Anything))
        options = [f"{self.key} in {_list(free)}"] if free else []
        options += [
            f"{self.key} == '{key}' && {rule.cel(f'{value}[{self.key}]', named)}"
            for key, rule in self.allowed.items()
            if not isinstance(rule, Anything)
        ]
        return " || ".join(options)


@dataclass(frozen=True)
class Says:
    """A map that another rule lets through and that, unless it has a certain name, says some things itself."""

    rule: Rule
    name: str | None
    """Of the one that need not; None: all must."""
    paths: tuple[tuple[str, ...], ...]
    """What it says, as keys from the outside in."""

    def faults(self, value: Any, place: str) -> Iterator[str]:
        """See :class:`Rule`."""
        yield from self.rule.faults(value, place)
        if not isinstance(value, Mapping):
            return
        if self.name is not None and "name" not in value:
            yield f"{place}.name (which must be set)"
            return
        if self.name is not None and value["name"] == self.name:
            return
        for path in self.paths:
            node: Any = value
            for key in path:
                node = node[key] if isinstance(node, Mapping) and key in node else None
            if node is None:
                yield f"{place}.{'.'.join(path)} (which must be set)"

    def cel(self, value: str, named: Named) -> str:
        """See :class:`Rule`."""
        steps = [[".".join((value, *path[: depth + 1])) for depth in range(len(path))] for path in self.paths]
        said = " && ".join(dict.fromkeys(f"has({step})" for path in steps for step in path))
        excused = "" if self.name is None else f"{value}.name == '{self.name}' || "
        return f"{self.rule.cel(value, named)} && ({excused}{said})"


@dataclass(frozen=True)
class SecretNamed:
    """A map that names a Secret: let through where the author may read that one, which the API server alone knows."""

    key: str

    def faults(self, value: Any, place: str) -> Iterator[str]:
        """See :class:`Rule`."""
        yield place

    def cel(self, value: str, named: Named) -> str:
        """See :class:`Rule`."""
        return named(f"{value}.{self.key}")


def _list(values: tuple[str | bool, ...]) -> str:
    words = (f"'{value}'" if isinstance(value, str) else str(value).lower() for value in values)
    return f"[{', '.join(words)}]"


def _unlike(value: str, prefixes: tuple[str, ...]) -> str:
    return " && ".join(f"!{value}.startsWith('{prefix}')" for prefix in prefixes)


def _below(place: str, key: Any) -> str:
    """Return the place of a key as a message may show it: what is no ordinary word is quoted, and cut off."""
    word = key if isinstance(key, str) and _ORDINARY_KEY.fullmatch(key) else ascii(key)
    return f"{place}.{word[:_LONGEST_KEY]}" if place else word[:_LONGEST_KEY]
