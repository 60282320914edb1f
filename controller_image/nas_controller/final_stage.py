"""The final training (paper section 4.1): the search's best architectures with a grid of settings, then one test.

Pure. A final training is a child like any other: it has a sample number, launches and a result. It is no sample of the
search: the policy is not told of it, and it counts neither against the budget nor for the search's best. Each
combination of the grid is trained with each seed, measured on the validation set, and earns a reward as in the search,
penalties included; only the one with the highest mean is trained once more, tested on the test set, and handed over
with its weights. Where the validation set is to be left out of that last training, it would be one of those that are
done: the network of the winner's best seed is tested.
"""

from dataclasses import dataclass, field
from itertools import product
from math import prod
from operator import attrgetter, itemgetter
from typing import Any

from nas_api.agreement import Agreement, kendall
from nas_api.architecture import Architecture
from nas_api.bounds import mean, spread
from nas_api.child import FinalSettings
from nas_api.experiment import FinalTrainingSpec, OptimizerSpec
from nas_api.reasons import Reason
from nas_log.records import FinalRun

MOST_FINALISTS = 50
"""The bound of ``finalTraining.top``: so many leaders a search remembers."""


@dataclass
class Leader:
    """One of the search's best architectures; each is here once, with the highest reward that it has had."""

    sample: int
    reward: float
    architecture: Architecture
    identity: str


@dataclass
class Trained:
    """What one final training gave on the validation set."""

    sample: int
    """Its number, which its seed comes from."""
    reward: float
    metric: float | None
    """None: it diverged, which has earned the lowest reward."""


@dataclass
class Trial:
    """One combination of the grid on one architecture, trained with each seed."""

    run: FinalRun
    """What its trainings have in common."""
    trained: list[Trained] = field(default_factory=list)
    """Those that have ended, in that order; at least one of them has a metric, or it is no candidate."""

    @property
    def reward(self) -> float:
        """The mean reward, those that diverged included."""
        return mean([each.reward for each in self.trained])

    @property
    def metric(self) -> float:
        """The mean metric of those that did not diverge."""
        return mean(self._metrics)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the metric over the seeds; None with fewer than two."""
        return spread(self._metrics) if len(self._metrics) > 1 else None

    @property
    def candidate(self) -> bool:
        """Whether a training of it has not diverged."""
        return bool(self._metrics)

    @property
    def best(self) -> Trained:
        """The training with the highest reward of those that did not diverge; the first of equals."""
        return max(self._whole, key=attrgetter("reward"))

    @property
    def first(self) -> Trained:
        """The training with the first seed of those that did not diverge."""
        return min(self._whole, key=attrgetter("sample"))

    @property
    def _whole(self) -> list[Trained]:
        return [each for each in self.trained if each.metric is not None]

    @property
    def _metrics(self) -> list[float]:
        return [each.metric for each in self.trained if each.metric is not None]


@dataclass
class Finalist:
    """One architecture of the final stage and what its trainings gave."""

    sample: int
    """The search's sample that it comes from."""
    reward: float
    """Its reward in the search."""
    architecture: Architecture
    final_reward: float | None = None
    """The highest mean reward of its trials, on the validation set; None as long as there is none."""
    metric: float | None = None
    """The mean metric of the trial that earned it."""
    run: FinalRun | None = None
    """That trial's."""
    trials: list[Trial] = field(default_factory=list)
    """Those combinations of the grid of which a training has ended, in that order."""

    @property
    def best(self) -> Trial | None:
        """The trial with the highest mean reward so far; the first of equals. None: no training has a metric."""
        return max((trial for trial in self.trials if trial.candidate), key=attrgetter("reward"), default=None)

    def add(self, run: FinalRun, trained: Trained) -> None:
        """Take what one training gave."""
        trial = next((each for each in self.trials if each.run == run), None)
        if trial is None:
            trial = Trial(run)
            self.trials.append(trial)
        trial.trained.append(trained)
        if (best := self.best) is not None:
            self.final_reward, self.metric, self.run = best.reward, best.metric, best.run


@dataclass
class FinalStage:
    """The state from the search's last sample to the end."""

    spec: FinalTrainingSpec
    reason: Reason
    """Why the search ended."""
    message: str
    finalists: list[Finalist]
    begun: int = 0
    """Trainings that have a sample number, the test's included."""
    trained: int = 0
    lost: int = 0
    last_loss: str = ""
    test_sample: int | None = None
    test_metric: float | None = None
    """On the test set; None as long as there is none."""
    test_files: dict[str, str] | None = None
    """SHA-256 in hex of what the test has left, by file name; None as long as there is nothing."""
    test_loss: str = ""
    """Why there is no test metric and never will be."""

    @property
    def total(self) -> int:
        """How many trainings are asked for, the test not counted."""
        return len(self.finalists) * self._settings * self.spec.seeds

    @property
    def _settings(self) -> int:
        return prod(len(axis) or 1 for axis in self.spec.grid.axes)

    @property
    def winner(self) -> Finalist | None:
        """The finalist with the highest final reward so far; the first of equals, which the search ranked higher."""
        measured = [(each.final_reward, each) for each in self.finalists if each.final_reward is not None]
        return max(measured, key=itemgetter(0))[1] if measured else None

    @property
    def winning(self) -> Trial | None:
        """The combination of the grid by which it wins."""
        return None if self.winner is None else self.winner.best

    @property
    def agreement(self) -> Agreement | None:
        """How far the search's rewards ranked the finalists as their final trainings do."""
        measured = [(each.reward, each.final_reward) for each in self.finalists if each.final_reward is not None]
        return kendall([search for search, _ in measured], [final for _, final in measured])

    @property
    def over(self) -> bool:
        """Whether there is nothing left to begin; what has begun may be open still."""
        return self.begun > self.total or (self.begun == self.total and self._ended == self.total and not self.winner)

    @property
    def _ended(self) -> int:
        return self.trained + self.lost

    def room(self) -> int:
        """Return how many trainings may begin now: all of the grid at once, the test when those have ended."""
        if self.begun < self.total:
            return self.total - self.begun
        return int(not self.over and self._ended == self.total)

    def next(self, optimizer: OptimizerSpec) -> tuple[Architecture, FinalRun]:
        """Return what is trained next; there must be room.

        Args:
            optimizer: the trainer's, for what the grid does not name.
        """
        if self.begun == self.total:
            winner, trial = self.winner, self.winning
            assert winner is not None and trial is not None
            test: dict[str, Any] = {"test": True}
            if not self.spec.train_on_validation:
                test["repeats"] = trial.best.sample
            elif self.spec.seeds > 1:
                test["repeats"] = trial.first.sample
            settings = trial.run.settings.model_copy(update=test)
            return winner.architecture, trial.run.model_copy(update={"settings": settings})
        # All finalists with the grid's first settings, then with the second, so that an early look compares them; and
        # all of that with one seed, then with the next.
        combination, index = divmod(self.begun % (self.total // self.spec.seeds), len(self.finalists))
        finalist = self.finalists[index]
        settings, optimizer = combinations(self.spec, optimizer)[combination]
        return finalist.architecture, FinalRun(
            of=finalist.sample, settings=settings, optimizer=optimizer, epochs=self.spec.epochs
        )

    def begin(self, sample: int, run: FinalRun) -> None:
        """Take note that a training has begun."""
        self.begun += 1
        if run.settings.test:
            self.test_sample = sample

    def observe(
        self, sample: int, run: FinalRun, metric: float | None, reward: float, files: dict[str, str] | None = None
    ) -> None:
        """Take a training's metric, None where it diverged, its reward, and of the test what it has left."""
        if run.settings.test:
            self.test_metric, self.test_files = metric, files
            if metric is None:
                self.test_loss = "it diverged"
            return
        self.trained += 1
        finalist = next(each for each in self.finalists if each.sample == run.of)
        finalist.add(run, Trained(sample, reward, metric))

    def lose(self, run: FinalRun, loss: str) -> None:
        """Take note that a training gave nothing."""
        if run.settings.test:
            self.test_loss = loss
            return
        self.lost += 1
        self.last_loss = loss

    def summary(self, metric: str) -> str:
        """Return a sentence on how it went, for the end."""
        trained = f"{self.trained} of {self.total} final trainings done"
        winner, trial = self.winner, self.winning
        if winner is None or trial is None:
            why = f", the last one was {self.last_loss}" if self.last_loss else ", all diverged"
            return f"{trained}, none with a result{why}; best/ has the search's best"
        spread = "" if trial.spread is None else f" ± {trial.spread:.2g} over {len(trial.trained)} seeds"
        best = f"{trained}, the best with {metric} {trial.metric:.6g}{spread} (sample {winner.sample} of the search)"
        if self.test_metric is not None:
            return f"{best}, on the test set {self.test_metric:.6g}"
        return f"{best}, but the test gave no result: {self.test_loss or 'none yet'}"


def combinations(spec: FinalTrainingSpec, optimizer: OptimizerSpec) -> list[tuple[FinalSettings, OptimizerSpec]]:
    """Return every combination of the grid, the last axis fastest; what it does not name stays as it is."""
    grid = spec.grid
    return [
        (
            FinalSettings(
                batch_norm_epsilon=epsilon,
                decay_epoch=decay,
                dropout=dropout,
                initial_scale=scale,
                on_validation=spec.train_on_validation,
            ),
            optimizer.model_copy(update={"learning_rate": rate, "weight_decay": weight_decay}),
        )
        for rate, weight_decay, epsilon, decay, dropout, scale in product(
            grid.learning_rate or (optimizer.learning_rate,),
            grid.weight_decay or (optimizer.weight_decay,),
            grid.batch_norm_epsilon or (FinalSettings().batch_norm_epsilon,),
            grid.decay_epoch or (None,),
            grid.dropout or (None,),
            grid.initial_scale or (None,),
        )
    ]


def ranked(leaders: list[Leader], new: Leader) -> list[Leader]:
    """Return the leaders with one more sample among them, best first; the first of equals stays ahead."""
    same = next((each for each in leaders if each.identity == new.identity), None)
    if same is not None and same.reward >= new.reward:
        return leaders
    others = [each for each in leaders if each is not same]
    place = next((at for at, each in enumerate(others) if each.reward < new.reward), len(others))
    return [*others[:place], new, *others[place:]][:MOST_FINALISTS]
