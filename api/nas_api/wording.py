"""How quantities are told to people, alike on a terminal and in the report. Pure, and loads nothing."""


def duration(seconds: float) -> str:
    """Return a duration: ``0.4 s``, ``42 s``, ``3 min 20 s``, ``2 h 05 min``, ``12 d 3 h``; none is below 0."""
    seconds = max(0.0, seconds)
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 100 * 3600:
        return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400:,} d {whole % 86400 // 3600} h"
