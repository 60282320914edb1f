"""Which keys a store takes: relative, and without a way out of the experiment's prefix."""


def check_key(key: str) -> str:
    """Return the key.

    Raises:
        ValueError: it is empty or absolute, or a part of it is empty, ``.``, ``..`` or begins with a dot.
    """
    if any(part == "" or part.startswith(".") for part in key.split("/")):
        raise ValueError(f"{key!r} cannot be a key: parts must not be empty nor begin with a dot")
    return key
