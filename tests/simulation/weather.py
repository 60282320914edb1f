"""What is wrong with cluster and store, and when: intervals in which calls are refused or their answers lost."""

from dataclasses import dataclass, field

from simulation.scheduler import Scheduler

from nas_kube.errors import ApiError, ApiUnavailable, KubeError
from nas_store.errors import StoreUnreachable

WRITES = ("POST", "APPLY", "PATCH", "DELETE")


@dataclass(frozen=True)
class Front:
    """Something that is wrong for a while."""

    kind: str
    """A key of ``KINDS``."""
    start: float
    end: float
    share: float = 1.0
    """Of the calls that it is about."""
    whom: str = ""
    """Whose calls, by the beginning of the process's name; empty: everybody's."""

    def __str__(self) -> str:
        """Return it as a line of a history."""
        whom = f" for {self.whom}" if self.whom else ""
        return f"{self.kind}{whom}, {self.share:.0%} of calls, until {self.end:.0f} s"


KINDS = {
    "api-away": "the API server does not answer",
    "api-500": "the API server answers 500",
    "api-429": "the API server answers 429",
    "api-lost": "calls take effect, and their answers are lost",
    "api-cut": "answers end in the middle",
    "api-watch": "lists and watches are refused",
    "webhook-500": "a webhook that looks at Jobs is down",
    "webhook-timeout": "a webhook that looks at Jobs does not answer",
    "webhook-404": "POSTs of Jobs are answered 404",
    "webhook-401": "POSTs of Jobs are answered 401",
    "post-429": "POSTs of Jobs are answered 429",
    "quota": "POSTs of Jobs are answered 403: exceeded quota",
    "delete-403": "DELETEs of Jobs are answered 403",
    "s3-away": "the store does not answer",
    "s3-503": "the store answers 503",
    "s3-lost": "writes take effect, and their answers are lost",
    "s3-stale": "listings are from before the interval",
    "node-refuses": "the node refuses every pod that it gets",
}


@dataclass
class Weather:
    """All that is wrong in one history."""

    scheduler: Scheduler
    fronts: list[Front] = field(default_factory=list)

    @property
    def clears(self) -> float:
        """When the last of it is over."""
        return max((front.end for front in self.fronts), default=0.0)

    def api(self, process: str, verb: str, plural: str) -> tuple[KubeError | None, float]:
        """Return the refusal of a call that has no effect, if it is one, and the seconds that it takes to come."""
        chance = self.scheduler.chance
        about_jobs = plural == "jobs" and verb in ("POST", "DRYRUN")
        for front in self._here(process):
            match front.kind:
                case "api-away":
                    return ApiUnavailable(f"{verb} {plural}: connection refused"), chance.uniform(0.0, 5.0)
                case "api-500":
                    return ApiError(500, "InternalError", "etcdserver: request timed out"), 0.0
                case "api-429":
                    return ApiError(
                        429, "TooManyRequests", "too many requests", (), chance.choice((None, 1.0, 9.0))
                    ), 0.0
                case "api-watch" if verb in ("LIST", "WATCH"):
                    return ApiUnavailable(f"{verb} {plural}: connection refused"), 0.0
                case "webhook-500" if about_jobs:
                    return ApiError(500, "InternalError", 'failed calling webhook "jobs.example.com"'), 0.0
                case "webhook-timeout" if about_jobs:
                    return ApiUnavailable(f"{verb} {plural}: timed out"), 30.0
                case "webhook-404" if about_jobs:
                    return ApiError(404, "NotFound", "the server could not find the requested resource"), 0.0
                case "webhook-401" if about_jobs:
                    return ApiError(401, "Unauthorized", "Unauthorized"), 0.0
                case "post-429" if about_jobs:
                    return ApiError(429, "TooManyRequests", "please try again", (), 1.0), 0.0
                case "quota" if about_jobs:
                    return ApiError(403, "Forbidden", "exceeded quota: jobs, used: count/jobs.batch=0"), 0.0
                case "delete-403" if verb == "DELETE" and plural == "jobs":
                    return ApiError(403, "Forbidden", 'User "nas" cannot delete resource "jobs"'), 0.0
        return None, 0.0

    def lost(self, process: str, verb: str) -> bool:
        """Return whether the answer to a call that has had its effect is lost."""
        return verb in WRITES and any(front.kind == "api-lost" for front in self._here(process))

    def cut(self, process: str) -> bool:
        """Return whether the answer to a call that has had its effect ends too early, or a watch within an event."""
        return any(front.kind == "api-cut" for front in self._here(process))

    def store(self, process: str) -> None:
        """Do nothing.

        Raises:
            StoreUnreachable: a call of the store has no effect.
        """
        for front in self._here(process):
            if front.kind in ("s3-away", "s3-503"):
                words = "does not answer" if front.kind == "s3-away" else "answered with 503 SlowDown"
                raise StoreUnreachable(f"http://s3.example {words}: look at the S3 server")

    def store_lost(self, process: str) -> bool:
        """Return whether the answer to a write of the store is lost that has had its effect."""
        return any(front.kind == "s3-lost" for front in self._here(process))

    def stale_since(self) -> float | None:
        """Return from when the listings are that the store gives now; None: they are new."""
        return min((front.start for front in self._now() if front.kind == "s3-stale"), default=None)

    def is_wrong(self, *kinds: str) -> bool:
        """Return whether something of these kinds is wrong now."""
        return any(front.kind in kinds for front in self._now())

    def _now(self) -> list[Front]:
        return [front for front in self.fronts if front.start <= self.scheduler.now < front.end]

    def _here(self, process: str) -> list[Front]:
        return [
            front
            for front in self._now()
            if process.startswith(front.whom) and (front.share >= 1.0 or self.scheduler.chance.random() < front.share)
        ]
