"""What a status says of the networks that were found, for programs. Pure."""

from nas_api.architecture import Architecture
from nas_api.experiment import Best, FinalStatus, NASExperimentSpec
from nas_api.search_space import search_space


def best_architecture(spec: NASExperimentSpec, best: Best) -> Architecture | None:
    """Return the search's best architecture; None where the status had no room for all of it."""
    try:
        architecture = search_space(spec.search_space).parse_short(best.architecture)
    except ValueError:
        return None
    # One that was cut between two words is another architecture.
    return architecture if architecture.digest == best.digest else None


def final_document(final: FinalStatus | None) -> dict[str, object] | None:
    """Return what the final training has found as plain JSON values; it may prefer another sample than the search."""
    if final is None:
        return None
    return {
        "sample": final.sample,
        "validationMetric": _number(final.best_metric),
        "testMetric": _number(final.test_metric),
    }


def _number(decimal: str | None) -> float | None:
    return None if decimal is None else float(decimal)
