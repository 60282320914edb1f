"""What an experiment asks for that its author must be entitled to: the operator makes pods for people who may not.

Whoever may create a NASExperiment may ask for what everybody needs who trains networks (``nas_api.pod_template``). What
goes beyond that list, and a ServiceAccount or a Secret that is named (but for those of ``storage``), is for those who
could have it without us: who may create pods in that namespace or, for a Secret, get that one. The API server knows who
that is, so the chart's admission policy asks; the expressions come from here. Where there is no policy, nobody is
entitled, and the operator and the controllers refuse by the same list, unless they are told otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nas_api.allowed import Fields, Named
from nas_api.experiment import NASExperimentSpec
from nas_api.pod_template import ALLOWED

PARTS = ("trainer", "finalTraining", "controller", "tracking")
"""The parts of the spec that have pods."""

_CURE = "remove it, or ask an administrator of the operator to set admission.enabled or templates.unrestricted"
_FINALIZERS = "metadata.finalizers must not be set: nothing would remove them, and its pods could never be deleted"
_SHOWN = 5


@dataclass(frozen=True)
class Claim:
    """Something that an experiment asks for beyond what everybody may."""

    path: tuple[str, ...]
    """The field, from ``spec`` on."""
    what: str
    """What it asks for, for people."""
    granted: bool = True
    """Whether anybody may have it."""

    @property
    def field(self) -> str:
        """The field, for people."""
        return ".".join(self.path)


def claims(spec: NASExperimentSpec, *parts: str) -> Iterator[Claim]:
    """Yield what some parts of a spec ask for beyond what everybody may."""
    final, tracking = spec.final_training, spec.tracking
    templates: dict[str, dict[str, Any] | None] = {
        "trainer": spec.trainer.template,
        "finalTraining": None if final is None else final.template,
        "controller": spec.controller.template,
        "tracking": None if tracking is None else tracking.template,
    }
    accounts = {"trainer": spec.trainer.service_account_name, "controller": spec.controller.service_account_name}
    for part in parts:
        template = templates[part] or {}
        places = list(ALLOWED[part].faults(template, ""))
        if any(place == "metadata.finalizers" for place in places):
            yield Claim(("spec", part, "template"), _FINALIZERS, granted=False)
        elif places:
            more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
            shown = ", ".join(places[:_SHOWN])
            yield Claim(("spec", part, "template"), f"{shown}{more}: beyond what a template may ask for")
        if accounts.get(part) is not None:
            yield Claim(("spec", part, "serviceAccountName"), "names a ServiceAccount")
        if part == "tracking" and tracking is not None and tracking.mlflow.credentials_secret is not None:
            yield Claim(("spec", "tracking", "mlflow", "credentialsSecret"), "names a Secret")


def refuse(spec: NASExperimentSpec, *parts: str, unrestricted: bool) -> None:
    """Refuse what some parts of a spec ask for.

    Args:
        spec: the experiment's.
        parts: some of PARTS.
        unrestricted: whether admission has asked the author already, or an administrator wants it so.

    Raises:
        ValueError: it asks for something that nobody may have, or beyond what everybody may; the message names field
            and cure.
    """
    for claim in claims(spec, *parts):
        if not claim.granted:
            raise ValueError(f"{claim.field}: {claim.what}")
        if not unrestricted:
            raise ValueError(f"{claim.field}: {claim.what}: {_CURE}")


# ---------------------------------------------------------------- the same for the API server

# A part's pods are asked about as a whole: who changes the program of a pod that somebody else was entitled to would
# have what that one could.
_TRAINER = ("image", "command", "serviceAccountName", "template")
_CHANGED = {
    "trainer": tuple(f"trainer.?{field}" for field in _TRAINER),
    "finalTraining": ("?finalTraining.?template", *(f"trainer.?{field}" for field in _TRAINER)),
    "controller": ("controller.?serviceAccountName", "controller.?template"),
    "tracking": ("?tracking", "controller.?serviceAccountName"),
}
_PODS = "authorizer.group('').resource('pods').namespace(request.namespace).check('create').allowed()"
_ENTITLED = "needs an author who may create pods in this namespace, and you may not: remove it, or let one apply it"


def _may_get(name: str) -> str:
    return f"authorizer.group('').resource('secrets').namespace(request.namespace).name({name}).check('get').allowed()"


def beyond(part: str, template: str, named: Named = _may_get) -> str:
    """Return the expression for the list of places at which a template goes beyond.

    Args:
        part: whose template.
        template: the expression for it.
        named: see :data:`nas_api.allowed.Named`.
    """
    parts = ALLOWED[part].allowed
    keys = ", ".join(f"'{name}'" for name in parts)
    lists = [f"{template}.map(t, !(t in [{keys}] && type({template}[t]) == map), t)"]
    for name, rule in parts.items():
        assert isinstance(rule, Fields)
        inside = f"{template}.{name}"
        inner = f"{inside}.map({rule.key}, !({rule.let_through(inside, named)}), '{name}.' + {rule.key})"
        lists.append(f"('{name}' in {template} && type({inside}) == map ? {inner} : [])")
    return " + ".join(lists)


def policy() -> dict[str, list[dict[str, str]]]:
    """Return the ``variables`` and ``validations`` of a ValidatingAdmissionPolicy for NASExperiments.

    What an update leaves as it was is not asked about. An expression that cannot be evaluated, as of a template of
    another shape than templates have, refuses who is not entitled.
    """
    variables = [{"name": "entitled", "expression": _PODS}]
    validations: list[dict[str, str]] = []
    for part in PARTS:
        changed = " || ".join(f"object.spec.{field} != oldObject.spec.{field}" for field in _CHANGED[part])
        template = f"object.spec.?{part}.?template.orValue({{}})"
        places, theirs = f"variables.{part}Beyond", f"variables.{part}Template"
        variables += [
            {"name": f"{part}Changed", "expression": f"oldObject == null || {changed}"},
            {"name": f"{part}Template", "expression": f"variables.{part}Changed ? {template} : {{}}"},
            {"name": f"{part}Beyond", "expression": beyond(part, theirs)},
        ]
        validations += [
            {
                "expression": (
                    f"!('metadata' in {theirs}) || type({theirs}.metadata) != map"
                    f" || !('finalizers' in {theirs}.metadata)"
                ),
                "message": f"spec.{part}.template: {_FINALIZERS}",
            },
            {
                "expression": f"variables.entitled || {places}.size() == 0",
                "messageExpression": (
                    f"'spec.{part}.template: ' + {places}.join(', ')"
                    f" + ': beyond what a template may ask for, which {_ENTITLED}'"
                ),
                "message": f"spec.{part}.template: what is beyond the list of what a template may ask for {_ENTITLED}",
            },
        ]
    for part in ("trainer", "controller"):
        validations.append(
            {
                "expression": (
                    f"!variables.{part}Changed || !has(object.spec.{part}.serviceAccountName) || variables.entitled"
                ),
                "message": f"spec.{part}.serviceAccountName: naming a ServiceAccount {_ENTITLED}",
            }
        )
    secret = "object.spec.tracking.mlflow.credentialsSecret"
    validations += [
        {
            # A follower runs as the controller's ServiceAccount, with a program of its template.
            "expression": (
                "!variables.trackingChanged || !has(object.spec.tracking)"
                " || !has(object.spec.controller.serviceAccountName) || variables.entitled"
            ),
            "message": f"spec.controller.serviceAccountName: naming a ServiceAccount for a follower {_ENTITLED}",
        },
        {
            "expression": (
                f"!variables.trackingChanged || !has(object.spec.tracking) || !has({secret})"
                f" || variables.entitled || {_may_get(f'{secret}.name')}"
            ),
            "message": (
                "spec.tracking.mlflow.credentialsSecret: naming a Secret needs an author who may get that Secret, or"
                " create pods in this namespace, and you may not: remove it, or let one apply it"
            ),
        },
    ]
    return {"variables": variables, "validations": [{**item, "reason": "Forbidden"} for item in validations]}
