"""What a seed lets happen: the manifest, the troubles and when they come, and how children end."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from simulation.nodes import NO_IMAGE
from simulation.weather import Front


@dataclass(frozen=True)
class Happening:
    """Something that happens once."""

    kind: str
    at: float
    seconds: float = 0.0
    """How long it lasts."""
    spec: dict[str, Any] = field(default_factory=dict)
    """Fields of the manifest that change."""
    launch: int = 0
    """Of the foreign Job; or how many objects of the log are cut off."""
    namesake: bool = False
    """Whether the foreign Job has the very name of a child's."""

    def __str__(self) -> str:
        """Return it as a line of a history."""
        more = f" for {self.seconds:.0f} s" if self.seconds else ""
        return f"{self.kind}{more} {self.spec or ''}".rstrip()


@dataclass(frozen=True)
class Script:
    """Everything that is decided before a history begins."""

    spec: dict[str, Any]
    fates: dict[str, float]
    """How children end, with weights."""
    fronts: tuple[Front, ...] = ()
    happenings: tuple[Happening, ...] = ()
    crashes: frozenset[int] = frozenset()
    """Numbers of controllers' calls after which the controller dies that made them."""
    pauses: dict[int, float] = field(default_factory=dict)
    """The same, where a controller stands still for so many seconds and its node is given up for lost."""
    gaps: dict[int, float] = field(default_factory=dict)
    """Numbers of POSTs of children after which controllers see nothing for so many seconds."""
    snapshot_every: int = 200
    earlier_at: float | None = None
    """When the experiment has left its log that this one starts from; None: there is none."""
    room: int = 0
    """How many children the queue lets in at once."""
    troubles: tuple[str, ...] = ()
    """Keys of ``TROUBLES`` and ``MORE``."""

    @property
    def namesakes(self) -> bool:
        """Whether somebody makes Jobs that have the names of children."""
        return any(each.namesake for each in self.happenings)

    @property
    def clears(self) -> float:
        """When everything is over that can go wrong."""
        ends = [each.end for each in self.fronts] + [each.at + each.seconds for each in self.happenings]
        return max([*ends, self.earlier_at or 0.0, 300.0])


def calm(samples: int = 6, parallelism: int = 2) -> Script:
    """Return a script in which nothing goes wrong."""
    return Script(spec(samples, parallelism), {"trained": 1.0})


def spec(samples: int, parallelism: int, **trainer: Any) -> dict[str, Any]:
    """Return an experiment's spec: a small space, chance as searcher."""
    return {
        "searchSpace": {
            "convolutional": {
                "layers": {"initial": 2},
                "filterHeights": [1, 3],
                "filterWidths": [1, 3],
                "filters": [4, 8],
            }
        },
        "searcher": {"seed": 7, "random": {}, "duplicates": "Train"},
        "parallelism": parallelism,
        "budget": {"samples": samples},
        "trainer": {"dataset": {"digits": {}}, "epochs": 1, "deadline": "10m", **trainer},
        "storage": {"s3": {"bucket": "nas", "endpoint": "http://s3.example:9000"}},
    }


EARLIER = ("earlier", "89ab-uid")
"""Name and uid of the experiment that a warm start begins from."""
_API = ("api-away", "api-500", "api-429", "api-lost", "api-watch")
_JOBS = ("webhook-500", "webhook-timeout", "webhook-404", "webhook-401", "post-429", "quota", "delete-403")
_STORE = ("s3-away", "s3-503", "s3-lost", "s3-stale")
_CHILDREN = (
    *("diverged", "crashes", "killed-after-result", "out-of-memory", "no-result", "disrupted"),
    *("terminated", "terminated-and-gone", "refused", "no-image", "node-dies"),
)


def script(seed: int) -> Script:
    """Return the script of a seed: a few kinds of trouble, so that each has its chance to meet each other one."""
    chance = random.Random(f"script {seed}")
    troubles = chance.sample(list(TROUBLES), k=chance.choice((1, 1, 2, 2, 3, 4)))
    drawn = Drawn()
    for trouble in troubles:
        TROUBLES[trouble](chance, drawn)
    samples, parallelism = chance.randint(3, 8), chance.randint(1, 4)
    trainer = {
        "attempts": chance.choice((1, 2, 3)),
        "ttlSecondsAfterFinished": chance.choice((0, 10, 60, 600)),
        "childrenPerPod": chance.choice((1, 1, 1, 2)),
        **({} if drawn.image is None else {"image": drawn.image}),
    }
    snapshot_every = chance.choice((3, 8, 20, 200))
    drawn.spec = spec(samples, parallelism, **trainer)
    for more, (share, draw) in MORE.items():
        # Each from a stream of its own: one more changes only the seeds that have it.
        own = random.Random(f"{more} {seed}")
        if own.random() < share:
            draw(own, drawn)
            troubles.append(more)
    return Script(
        drawn.spec,
        drawn.fates,
        tuple(drawn.fronts),
        tuple(sorted(drawn.happenings, key=lambda each: each.at)),
        frozenset(drawn.crashes),
        drawn.pauses,
        drawn.gaps,
        snapshot_every,
        drawn.earlier_at,
        drawn.room,
        tuple(troubles),
    )


@dataclass
class Drawn:
    """What the troubles of a script have drawn so far."""

    fronts: list[Front] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    fates: dict[str, float] = field(default_factory=lambda: {"trained": 1.0})
    crashes: set[int] = field(default_factory=set)
    pauses: dict[int, float] = field(default_factory=dict)
    gaps: dict[int, float] = field(default_factory=dict)
    image: str | None = None
    earlier_at: float | None = None
    room: int = 0
    spec: dict[str, Any] = field(default_factory=dict)
    """Empty before all of ``TROUBLES`` are drawn."""


Draw = Callable[[random.Random, Drawn], None]


def _front(kinds: tuple[str, ...], whoms: tuple[str, ...] = ("",)) -> Draw:
    def draw(chance: random.Random, drawn: Drawn) -> None:
        for _ in range(chance.randint(1, 2)):
            start = chance.uniform(0.0, 300.0)
            length = chance.choice((3.0, 20.0, 90.0, 400.0, 1200.0)) * chance.uniform(0.5, 1.5)
            share = chance.choice((0.2, 0.5, 1.0, 1.0))
            drawn.fronts.append(Front(chance.choice(kinds), start, start + length, share, chance.choice(whoms)))

    return draw


def _fates(chance: random.Random, drawn: Drawn) -> None:
    for fate in chance.sample(_CHILDREN, k=chance.randint(1, 3)):
        drawn.fates[fate] = chance.choice((0.1, 0.3, 0.6))


def _crashes(chance: random.Random, drawn: Drawn) -> None:
    drawn.crashes.update(chance.sample(range(1, 60), k=chance.randint(1, 4)))
    drawn.happenings += [Happening("controller-dies", chance.uniform(0.0, 400.0)) for _ in range(chance.randint(0, 2))]


def _zombies(chance: random.Random, drawn: Drawn) -> None:
    """Let two controllers be at work: one that was given up for lost wakes up, or has never slept."""
    seconds = chance.choice((5.0, 60.0, 200.0, 600.0))
    if (kind := chance.random()) < 0.5:
        drawn.pauses.update(dict.fromkeys(chance.sample(range(1, 80), k=2), seconds))
    elif kind < 0.8:
        drawn.happenings.append(Happening("controller-stands-still", chance.uniform(5.0, 300.0), seconds))
    else:
        drawn.happenings.append(Happening("controller-is-cut-off", chance.uniform(5.0, 300.0)))


def _watches(chance: random.Random, drawn: Drawn) -> None:
    """Break watches; and sometimes let nobody look for a while, in which Jobs come, end and go."""
    if chance.random() < 0.5:
        for number in chance.sample(range(1, 8), k=2):
            drawn.gaps[number] = chance.uniform(20.0, 200.0)
        return
    at = chance.uniform(5.0, 300.0)
    kind = chance.choice(("watches-break", "watches-fall-silent", "compaction"))
    drawn.happenings.append(Happening(kind, at))
    if kind != "watches-fall-silent" and chance.random() < 0.6:
        drawn.fronts.append(Front("api-watch", at - 0.1, at + chance.uniform(10.0, 300.0), 1.0, "controller"))
    for _ in range(chance.randint(0, 3)):
        drawn.happenings.append(Happening("job-is-deleted", at + chance.uniform(0.0, 200.0)))


def _people(chance: random.Random, drawn: Drawn) -> None:
    """Let people suspend and resume, change the manifest, and delete Jobs."""
    at = chance.uniform(1.0, 200.0)
    for _ in range(chance.randint(0, 2)):
        until = at + chance.choice((0.5, 3.0, 30.0, 300.0)) * chance.uniform(0.5, 1.5)
        drawn.happenings.append(Happening("spec", at, spec={"suspend": True}))
        drawn.happenings.append(Happening("spec", until, spec={"suspend": False}))
        at = until + chance.uniform(0.5, 100.0)
    for _ in range(chance.randint(0, 2)):
        parallelism = {"parallelism": chance.randint(1, 5)}
        drawn.happenings.append(Happening("spec", chance.uniform(1.0, 300.0), spec=parallelism))
    for _ in range(chance.randint(0, 2)):
        drawn.happenings.append(Happening("job-is-deleted", chance.uniform(1.0, 300.0)))


def _image(chance: random.Random, drawn: Drawn) -> None:
    """Begin with an image that nobody can pull, and let it be corrected, sometimes while no controller runs."""
    at = chance.uniform(20.0, 300.0)
    drawn.image = NO_IMAGE
    if chance.random() < 0.5:
        drawn.happenings.append(Happening("controller-dies", at - 0.2))
    drawn.happenings.append(Happening("image-is-corrected", at))


def _strangers(chance: random.Random, drawn: Drawn) -> None:
    for _ in range(chance.randint(1, 3)):
        at, launch = chance.uniform(0.0, 100.0), chance.randint(0, 8)
        if chance.random() < 0.5:
            seconds = chance.uniform(60.0, 600.0)
            drawn.happenings.append(Happening("foreign-job", at, seconds, launch=launch, namesake=True))
        else:
            drawn.happenings.append(Happening("foreign-job", at, launch=launch))


def _log(chance: random.Random, drawn: Drawn) -> None:
    at, seconds = chance.uniform(20.0, 300.0), chance.uniform(60.0, 900.0)
    drawn.happenings.append(Happening("log-is-cut", at, seconds, launch=chance.choice((1, 1, 3, 100))))


def _operator(chance: random.Random, drawn: Drawn) -> None:
    drawn.happenings.append(Happening("operator-restarts", chance.uniform(0.0, 300.0), chance.uniform(1.0, 60.0)))


def _final(chance: random.Random, drawn: Drawn) -> None:
    """Let a final training follow."""
    drawn.spec["finalTraining"] = {
        "top": chance.randint(1, 3),
        "epochs": 1,
        "grid": {"learningRate": ["0.1", "0.01"][: chance.randint(1, 2)]},
        "seeds": chance.choice((1, 1, 2)),
        "trainOnValidation": chance.random() < 0.5,
    }


def _warm(chance: random.Random, drawn: Drawn) -> None:
    """Begin where another experiment ended, which may have left nothing yet."""
    drawn.earlier_at = chance.choice((0.0, 0.0, chance.uniform(30.0, 1500.0)))
    drawn.spec["searcher"]["warmStart"] = {"experiment": EARLIER[0], "uid": EARLIER[1]}


def _queue(chance: random.Random, drawn: Drawn) -> None:
    """Let children wait in a queue that pre-empts some of them, and may be stopped for a while."""
    drawn.spec["trainer"]["queue"] = "gpu"
    drawn.room = chance.randint(1, 4)
    for _ in range(chance.randint(0, 4)):
        drawn.happenings.append(Happening("queue-preempts", chance.uniform(10.0, 400.0)))
    if chance.random() < 0.5:
        seconds = chance.choice((30.0, 300.0, 1500.0))
        drawn.happenings.append(Happening("queue-stops", chance.uniform(0.0, 300.0), seconds))


def _pods(chance: random.Random, drawn: Drawn) -> None:
    """Let several pods train a child together: a user's own trainer, or a final training."""
    if "finalTraining" in drawn.spec:
        drawn.spec["finalTraining"]["pods"] = chance.randint(2, 3)
        return
    trainer = drawn.spec["trainer"]
    trainer |= {"dataset": {"custom": {}}, "pods": chance.randint(2, 3), "childrenPerPod": 1}
    trainer.setdefault("image", "somewhere/trainer:1")


def _nodes(chance: random.Random, drawn: Drawn) -> None:
    drawn.fates["node-is-away"] = chance.choice((0.3, 0.6))


TROUBLES: dict[str, Draw] = {
    "api": _front(_API, ("", "controller", "operator")),
    "jobs": _front(_JOBS),
    "store": _front(_STORE, ("", "controller", "trainer")),
    "node": _front(("node-refuses",)),
    "children": _fates,
    "crashes": _crashes,
    "zombies": _zombies,
    "watches": _watches,
    "people": _people,
    "image": _image,
    "strangers": _strangers,
    "log": _log,
    "operator": _operator,
}

MORE: dict[str, tuple[float, Draw]] = {
    "final training": (0.25, _final),
    "warm start": (0.1, _warm),
    "queue": (0.2, _queue),
    "pods": (0.2, _pods),
    "nodes away": (0.1, _nodes),
    "cut answers": (0.1, _front(("api-cut",), ("", "controller", "operator"))),
}
"""What some seeds have besides, in any combination, and the share of those that do."""
