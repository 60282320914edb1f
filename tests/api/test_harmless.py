"""Text of other programs on a terminal."""

import pytest

from nas_api.harmless import harmless


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, größer, 層 \N{GRINNING FACE}\n\tnext", "plain, größer, 層 \N{GRINNING FACE}\n\tnext"),
        ("\x1b[1;31mred\x1b[0m \x9b2Kline", "red line"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ b\x9dtitle\x9c", "alink b"),
        ("\x1b(B\x1b7\x1bcreset", "reset"),
        (" 50%|#\r100%|##", " 50%|# 100%|##"),
        ("a\N{NO-BREAK SPACE}b", "a b"),
        ("bell\a del\x7f back\b nul\0", "bell� del� back� nul�"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}cba \ud800", "�cba �"),
        ("cut off \x1b", "cut off �"),
        ("cut off \x1b[3", "cut off 3"),
    ],
)
def test_what_a_terminal_would_obey_is_gone(text: str, shown: str) -> None:
    assert harmless(text) == shown


@pytest.mark.parametrize("unit", ["\x9d", "\x9b", "\x1b]", "\x1b[", "\x9b0", "\x1bP\x90", "\x9d\x1b", "\x1b "])
def test_what_never_ends_is_looked_at_once(unit: str) -> None:
    # A look at all of the rest for each would take half an hour.
    shown = harmless(unit * 500_000)
    assert "\x1b" not in shown and "\x9d" not in shown
