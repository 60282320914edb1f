"""Text that somebody else's program has written, before it is shown on a terminal or kept in a status. Pure."""

import re

_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, moves of the cursor
    # OSC and the like: titles, links, the clipboard. None holds the beginning of another: the search stays linear.
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\x9d\x90\x98\x9e\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"  # all other sequences
)
"""Control sequences as ECMA-48 has them."""


def harmless(text: str) -> str:
    """Return a text without what a terminal would obey; newlines and tabs stay.

    Control sequences are left out, and other spaces become plain ones: both are what progress bars are made of. What
    else has no look of its own, such as a bell or a change of the direction of writing, becomes U+FFFD.
    """
    return "".join(map(_visible, _ESCAPES.sub("", text)))


def _visible(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
