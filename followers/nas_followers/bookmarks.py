"""How far a follower has come, and who the follower is: objects ``followers/<name>/0000000000.json`` and on.

Each says how far the log has been handed over, and is written only where none is. So whoever wrote the newest one is
the follower: a new one begins by writing the next, with the place of the one before, and the older one finds that when
it wants to go on. There is no lease and no clock, as with the log.
"""

from typing import Literal
from uuid import uuid4

from nas_api import names
from nas_api.base import Model
from nas_followers.errors import FollowerError, Superseded
from nas_log.follower import BEGINNING, Position
from nas_store import Store


class Bookmark(Model):
    """One object."""

    version: Literal[1] = 1
    writer: str
    """Nonce of the process."""
    sequence: int
    """Number of the newest object of the log all of whose samples have been handed over; -1: none."""
    digest: str
    """SHA-256 of its bytes in hex; empty for none."""
    done: bool = False
    """Whether the search has ended and everything is handed over and compared."""


class Bookmarks:
    """The bookmarks of one follower, from the moment at which it takes over."""

    def __init__(self, store: Store, follower: str) -> None:
        """Take over.

        Args:
            store: the experiment's.
            follower: its name, as that of a folder.

        Raises:
            FollowerError: the newest bookmark cannot be read.
            StoreError: the store cannot be used.
        """
        self._store = store
        self._follower = follower
        self._writer = uuid4().hex
        self._next = 0
        self.position = BEGINNING
        """Up to where everything has been handed over."""
        self.inherited = False
        """Whether there was a follower before this one."""
        while True:
            if (newest := self._newest()) is not None:
                self._next, mark = newest[0] + 1, newest[1]
                self.position, self.inherited = Position(mark.sequence, mark.digest), True
            try:
                self.move(self.position)
            except Superseded:
                # Somebody takes over at the same time: the later one is the follower.
                continue
            return

    def check(self) -> None:
        """Make sure that no other follower has taken over.

        Raises:
            Superseded: one has.
            StoreError: the store cannot be read.
        """
        if self._store.get(self._key()) is not None:
            raise Superseded(f"another follower has taken over and wrote {self._key()}")

    def others_are_done(self) -> bool:
        """Return whether the newest bookmark, whoever wrote it, says that nothing is left to do.

        Raises:
            FollowerError: it cannot be read.
            StoreError: the store cannot be used.
        """
        newest = self._newest()
        return newest is not None and newest[1].done

    def move(self, position: Position, *, done: bool = False) -> None:
        """Write how far everything has been handed over.

        Raises:
            Superseded: another follower has taken over.
            StoreError: it is not known whether it was written; the next follower looks up what it finds no note of.
        """
        mark = Bookmark(writer=self._writer, sequence=position.sequence, digest=position.digest, done=done)
        data = mark.model_dump_json(by_alias=True).encode()
        # Our own write, whose answer was lost, looks like another's: what is there decides.
        if not self._store.put_if_absent(self._key(), data) and self._store.get(self._key()) != data:
            raise Superseded(f"another follower has taken over and wrote {self._key()}")
        self._next += 1
        self.position = position

    def _key(self) -> str:
        return names.follower_key(self._follower, self._next)

    def _newest(self) -> tuple[int, Bookmark] | None:
        """Return the newest bookmark and its number."""
        keys = self._store.list(names.follower_prefix(self._follower))
        if not keys:
            return None
        try:
            number = int(names.file(keys[-1]).removesuffix(".json"))
            return number, Bookmark.model_validate_json(self._store.get(keys[-1]) or b"", extra="ignore")
        except ValueError as error:
            raise FollowerError(
                f"{self._store.uri(keys[-1])} is no bookmark of this version: run the version that wrote it, or remove"
                f" all objects below {names.follower_prefix(self._follower)} to begin anew; nothing is doubled by that"
            ) from error
