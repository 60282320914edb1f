"""``nas proxy-check``: the analysis against rewards of known noise, and the command on real trainings."""

import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from experiments import manifest
from rich.console import Console

from nas_api.experiment import NASExperiment
from nas_cli.errors import Refusal
from nas_cli.main import main
from nas_cli.proxy_check import Noise, check, lines, noise


def rewards(signal: float, spread: float, *, architectures: int = 400, repeats: int = 5) -> list[list[float]]:
    rng = random.Random(0)
    centres = [rng.gauss(0.5, signal) for _ in range(architectures)]
    return [[rng.gauss(centre, spread) for _ in range(repeats)] for centre in centres]


@pytest.mark.parametrize(("signal", "spread"), [(0.1, 0.02), (0.1, 0.1), (0.05, 0.2)])
def test_the_parts_of_the_variance_are_found(signal: float, spread: float) -> None:
    found = noise(rewards(signal, spread))
    assert found is not None
    assert found.mean == pytest.approx(0.5, abs=0.02)
    assert found.noise == pytest.approx(spread, rel=0.05)
    # The variance between means of 5 has the relative standard error of a chi-square of 399 degrees.
    error = (signal**2 + spread**2 / 5) * math.sqrt(2 / 399)
    assert found.signal**2 == pytest.approx(signal**2, abs=3 * error)
    assert found.reliability == pytest.approx(signal**2 / (signal**2 + spread**2), abs=0.05)


def test_groups_may_differ_in_size() -> None:
    groups = [group[: 2 + index % 4] for index, group in enumerate(rewards(0.1, 0.1))]
    found = noise(groups)
    assert found is not None
    assert (found.noise, found.signal) == pytest.approx((0.1, 0.1), rel=0.15)


def test_without_repeats_or_comparison_nothing_is_said() -> None:
    assert noise([]) is None
    assert noise([[0.5, 0.6]]) is None
    assert noise([[0.5], [0.6]]) is None


def test_all_noise_is_called_so() -> None:
    found = noise([[0.4, 0.6], [0.6, 0.4]])
    assert found is not None
    assert (found.signal, found.reliability, found.needed()) == (0.0, 0.0, None)
    assert "no difference between architectures is visible" in lines(found, 100)[-1]


def test_equal_rewards_leave_nothing_to_tell() -> None:
    found = noise([[0.5, 0.5], [0.5, 0.5]])
    assert found is not None
    assert found.needed() is None


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.1])
def test_what_samples_are_worth_agrees_with_a_simulation(spread: float) -> None:
    """The architecture of the best noisy reward of 60 is, on average, as good as the formula says."""
    analysis = Noise(2, 4, 0.0, spread, 0.1)
    rng = random.Random(1)
    chosen = []
    for _ in range(4000):
        truths = [rng.gauss(0.0, 0.1) for _ in range(60)]
        chosen.append(max((truth + rng.gauss(0.0, spread), truth) for truth in truths)[1])
    worth = analysis.worth(60)
    quantile = (worth - 0.375) / (worth + 0.25)
    expected = 0.1 * statistics.NormalDist().inv_cdf(quantile)
    assert statistics.fmean(chosen) == pytest.approx(expected, abs=4 * 0.1 / math.sqrt(4000))


def test_noise_asks_for_more_samples() -> None:
    needed = [Noise(2, 4, 0.0, spread, 0.1).needed() for spread in (0.0, 0.05, 0.1)]
    assert needed == sorted(each for each in needed if each is not None)
    # One of the best 1 % without noise: the 1 - 1/n quantile, nearly.
    assert needed[0] is not None and 50 < needed[0] < 100
    assert Noise(2, 4, 0.0, 0.0, 0.1).worth(100) == pytest.approx(100)


def test_trainings_that_are_compared_are_never_stopped_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[NASExperiment] = []
    monkeypatch.setattr("nas_cli.local_run.run", lambda experiment, *_, **__: asked.append(experiment))
    monkeypatch.setattr("nas_cli.proxy_check.read_samples", lambda *_: [])
    trainer = {"dataset": {"digits": {}}, "epochs": 4, "earlyStopping": {"epoch": 2}}
    written = NASExperiment.model_validate(manifest(trainer=trainer))
    with pytest.raises(Refusal, match="too few training runs"):
        check(written, tmp_path, None, Console(), architectures=2, repeats=2, here=tmp_path, again="")
    assert written.spec.trainer.early_stopping is not None
    assert asked[0].spec.trainer == written.spec.trainer.model_copy(update={"early_stopping": None})


@pytest.mark.slow
def test_the_command_repeats_a_few_architectures(small: Callable[..., Path], tmp_path: Path) -> None:
    words = ["proxy-check", str(small(samples=50)), "--folder", str(tmp_path / "run")]
    words += ["--architectures", "2", "--repeats", "2"]
    outcome = CliRunner().invoke(main, words, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    assert "over 4 training runs of 2 architectures" in outcome.output
    assert "noise: " in outcome.output
    # Other seeds, so other results.
    results = {path.read_text().partition('"metrics"')[2] for path in (tmp_path / "run").glob("samples/*/result.json")}
    assert len(results) == 4
