"""Which tests stay together where pytest has several workers.

``--dist loadgroup`` is made for that, and does nothing under pytest 9: it writes the group into an item's name, and
pytest does not let it any more.
"""

from xdist.scheduler import LoadFileScheduling

ON_THE_MACHINE = ("tests/cluster/test_node.py", "tests/e2e/", "tests/platform/", "tests/faults/")
"""Real nodes, of which a machine can have one at a time."""


class Together(LoadFileScheduling):  # type: ignore[misc]
    """A file stays on one worker, for what its fixtures make for all of it; so does all that changes the machine."""

    def _split_scope(self, nodeid: str) -> str:
        return "on the machine" if nodeid.startswith(ON_THE_MACHINE) else str(super()._split_scope(nodeid))
