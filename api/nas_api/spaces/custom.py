"""A user's own decisions, declared in the manifest, for a user's own trainer."""

from collections.abc import Mapping
from math import prod
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from nas_api.base import Model
from nas_api.cel import cel, exactly_one
from nas_api.decisions import Categorical, Choices, Decision, When, counting
from nas_api.spaces.base import SampledArchitecture

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,62}$", max_length=63)]
Option = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/+-]{1,63}$", min_length=1, max_length=63)]
_MAX_OPTIONS = 64
_MAX_STEPS = 256


class WhenSpec(Model):
    """When a decision is taken at all."""

    decision: Name
    """Name of an earlier decision that is not repeated."""
    among: Annotated[tuple[Option, ...], Field(min_length=1, max_length=_MAX_OPTIONS, alias="in")]
    """Values of that decision with which this one is taken."""


class RangeSpec(Model):
    """Whole numbers from ``from`` to ``to``, both included."""

    model_config = {
        "json_schema_extra": cel(
            ("self.from <= self.to", "from must not exceed to"),
            (
                f"(self.to - self.from) / self.step < {_MAX_OPTIONS}",
                f"a range may have at most {_MAX_OPTIONS} numbers: raise step",
            ),
        )
    }

    first: Annotated[int, Field(ge=-1_000_000, le=1_000_000, alias="from")]
    """The first number."""
    to: Annotated[int, Field(ge=-1_000_000, le=1_000_000)]
    """The last number."""
    step: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """The distance between neighbouring numbers."""


class DecisionSpec(Model):
    """One decision: options or a range of whole numbers, perhaps repeated, perhaps only with an earlier choice."""

    model_config = {"json_schema_extra": cel(exactly_one("options", "range"))}

    name: Name
    """Its name in architecture.json."""
    options: (
        Annotated[
            tuple[Option, ...],
            # A set, because a rule in CEL would cost more than the API server grants for so many words.
            Field(min_length=1, max_length=_MAX_OPTIONS, json_schema_extra={"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """The words to choose from."""
    range: RangeSpec | None = None
    """The whole numbers to choose from."""
    repeat: Annotated[int, Field(ge=1, le=128)] | None = None
    """How many times it is taken; its value is then a list, and the policy learns all of them as one kind."""
    when: WhenSpec | None = None
    """The condition under which it is taken; otherwise it is left out of architecture.json."""

    @model_validator(mode="after")
    def _one(self) -> "DecisionSpec":
        if (self.options is None) == (self.range is None):
            raise ValueError("set exactly one of options, range")
        if self.options is not None and len(set(self.options)) < len(self.options):
            twin = next(word for word in self.options if self.options.count(word) > 1)
            raise ValueError(f"options must differ: {twin!r} occurs twice")
        return self

    @property
    def values(self) -> tuple[str | int, ...]:
        """What there is to choose from."""
        if self.options is not None:
            return self.options
        assert self.range is not None
        return tuple(range(self.range.first, self.range.to + 1, self.range.step))


class CustomSpec(Model):
    """Your own decisions, for your own trainer: it reads `architecture.json` and writes `result.json`."""

    model_config = {
        "json_schema_extra": cel(
            (
                "self.decisions.all(d, !has(d.when) || self.decisions.exists(e,"
                " e.name == d.when.decision && e.name != d.name && !has(e.repeat)))",
                "when.decision must name another decision that is not repeated",
            )
        )
    }

    decisions: Annotated[
        tuple[DecisionSpec, ...],
        Field(
            min_length=1,
            max_length=100,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    """The decisions, in the order they are taken."""

    @model_validator(mode="after")
    def _names_come_earlier(self) -> "CustomSpec":
        earlier: dict[str, DecisionSpec] = {}
        faults: list[str] = []
        for index, decision in enumerate(self.decisions):
            if decision.name in earlier:
                faults.append(f"decisions[{index}].name: an earlier decision is already called {decision.name!r}")
            if decision.when is not None:
                source = earlier.get(decision.when.decision)
                if source is None:
                    known = (
                        " or ".join(name for name, each in earlier.items() if each.repeat is None) or "there is none"
                    )
                    faults.append(
                        f"decisions[{index}].when.decision: {decision.when.decision!r} is not an earlier decision; name"
                        f" one that comes before this one ({known}), or move it up"
                    )
                elif source.repeat is not None:
                    faults.append(
                        f"decisions[{index}].when.decision: {source.name} is repeated, so it has no single value;"
                        " name a decision without repeat"
                    )
                elif unknown := [word for word in decision.when.among if word not in map(str, source.values)]:
                    faults.append(
                        f"decisions[{index}].when.in: {source.name} has no option {unknown[0]!r}, only"
                        f" {', '.join(map(str, source.values))}"
                    )
            earlier.setdefault(decision.name, decision)
        steps = sum(decision.repeat or 1 for decision in self.decisions)
        if steps > _MAX_STEPS:
            faults.append(f"decisions: there are {steps}, counting repeats, and at most {_MAX_STEPS} are possible")
        if faults:
            # One a line, each beginning with its place.
            raise ValueError("\n".join(faults))
        return self


Value = Annotated[int, Field(strict=True)] | Annotated[str, Field(strict=True)]


class CustomArchitecture(SampledArchitecture):
    """The values of a user's decisions by name; a decision that was not taken is not there."""

    space: Literal["custom"] = "custom"
    choices: Annotated[Mapping[str, Value | tuple[Value, ...]], Field(max_length=100)]

    def short(self) -> str:
        """Return ``name=value`` words; the values of a repeated decision are joined by commas."""
        return " ".join(f"{name}={word(value)}" for name, value in self.choices.items())


def word(value: Value | tuple[Value, ...]) -> str:
    """Return a value as the short form has it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class CustomSpace:
    """The decisions of a manifest, in their order; a repeated one is as many steps of one kind."""

    def __init__(self, spec: CustomSpec) -> None:
        self._spec = spec
        steps: dict[str, tuple[int, DecisionSpec]] = {}
        decisions: list[Decision] = []
        for decision in spec.decisions:
            when = None
            if decision.when is not None:
                step, source = steps[decision.when.decision]
                words = list(map(str, source.values))
                when = When(step, frozenset(words.index(word) for word in decision.when.among))
            steps[decision.name] = (len(decisions), decision)
            decisions += [Categorical(decision.name, tuple(map(str, decision.values)), when)] * (decision.repeat or 1)
        self._decisions = tuple(decisions)
        self._steps = {name: step for name, (step, _) in steps.items()}

    def decisions(self, sample: int) -> tuple[Decision, ...]:
        """See :class:`~nas_api.spaces.base.Space`."""
        return self._decisions

    def size(self, sample: int) -> int:
        """See :class:`~nas_api.spaces.base.Space`; decisions that are not taken make no difference."""
        below: dict[str, list[DecisionSpec]] = {}
        counts: dict[str, int] = {}
        # From the last one back: what hangs on a decision comes after it, and each is counted once.
        for decision in reversed(self._spec.decisions):
            if decision.when is not None:
                below.setdefault(decision.when.decision, []).append(decision)
            counts[decision.name] = sum(
                prod(
                    counts[inner.name]
                    for inner in below.get(decision.name, [])
                    if inner.when is not None and str(value) in inner.when.among
                )
                for value in decision.values
            ) ** (decision.repeat or 1)
        return prod(counts[decision.name] for decision in self._spec.decisions if decision.when is None)

    def decode(self, choices: Choices) -> CustomArchitecture:
        """See :class:`~nas_api.spaces.base.Space`."""
        if len(choices) != len(self._decisions):
            raise ValueError(f"{len(self._decisions)} choices are needed, not {len(choices)}")
        for step, (decision, choice) in enumerate(zip(self._decisions, choices, strict=True)):
            assert isinstance(decision, Categorical)
            if not 0 <= choice < len(decision.options):
                raise ValueError(f"decision {step}: {decision.kind} has no option {choice}")
        taken = counting(self._decisions, choices)
        values: dict[str, str | int | tuple[str | int, ...]] = {}
        for spec in self._spec.decisions:
            step = self._steps[spec.name]
            if not taken[step]:
                continue
            options = spec.values
            if spec.repeat is None:
                values[spec.name] = options[choices[step]]
            else:
                values[spec.name] = tuple(options[choice] for choice in choices[step : step + spec.repeat])
        return CustomArchitecture(choices=values)

    def encode(self, architecture: CustomArchitecture) -> Choices:
        """See :class:`~nas_api.spaces.base.Space`."""
        choices: list[int] = []
        for spec in self._spec.decisions:
            value = architecture.choices.get(spec.name)
            if value is None:
                choices += [0] * (spec.repeat or 1)
                continue
            row = value if isinstance(value, tuple) else (value,)
            if len(row) != (spec.repeat or 1):
                raise ValueError(f"{spec.name} has {len(row)} values, not {spec.repeat or 1}")
            choices += [spec.values.index(each) for each in row]
        if self.decode(tuple(choices)) != architecture:
            raise ValueError("the architecture is not in this space")
        return tuple(choices)

    def parse_short(self, text: str) -> CustomArchitecture:
        """See :class:`~nas_api.spaces.base.Space`."""
        specs = {spec.name: spec for spec in self._spec.decisions}
        values: dict[str, str | int | tuple[str | int, ...]] = {}
        for word in text.split():
            name, equals, rest = word.partition("=")
            if not equals or name not in specs:
                raise ValueError(f"{word!r} is not a decision of this space")
            options = {str(value): value for value in specs[name].values}
            try:
                row = tuple(options[each] for each in rest.split(","))
            except KeyError as error:
                raise ValueError(f"{name} has no option {error}") from None
            values[name] = row[0] if specs[name].repeat is None else row
        architecture = CustomArchitecture(choices=values)
        self.encode(architecture)
        return architecture
