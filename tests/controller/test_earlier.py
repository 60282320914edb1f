"""Searches that begin where another one ended: a warm start, and the transfer of what it found."""

import math
from pathlib import Path

import pytest
import torch
from controller.test_search import Bench
from controller.world import CountingPolicy, MemoryStore, make_experiment

from nas_api import names
from nas_api.child import S3Location, StoreLocation
from nas_api.experiment import DatasetSpec
from nas_api.search_space import search_space
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.spaces.fixed import FixedSpec
from nas_controller.earlier import Earlier, FindEarlier, find, found_architecture
from nas_controller.errors import EarlierMissing, EarlierUnsuitable
from nas_controller.policies import Proposal
from nas_controller.policies.factory import make_policy
from nas_controller.policies.random import RandomPolicy
from nas_controller.search import Exit
from nas_controller.state import fold
from nas_log.log import Log
from nas_log.records import Inherited, Launched, Lost, Observed, Proposed, Started, WarmStarted
from nas_store import open_store

DIGITS = DatasetSpec.model_validate({"digits": {}})
TEXT = DatasetSpec.model_validate({"text": {}})
CUSTOM = DatasetSpec.model_validate({"custom": {}})
FIRST = FixedSpec(experiment="first")
SEARCHER = {"seed": 7, "random": {}, "duplicates": "Train"}
WARM = {**SEARCHER, "warmStart": {"experiment": "first"}}


def _first(fates: list[str] | None = None, **spec: object) -> Bench:
    bench = Bench(fates or [], policy=RandomPolicy)
    assert bench.run(make_experiment(**{"budget": {"samples": 12}, **spec})) is Exit.FINISHED
    return bench


def _finding(bench: Bench) -> FindEarlier:
    return lambda _, name, uid: Earlier(name, uid or "first-uid", bench.world.store)


# ---------------------------------------------------------------- warm start


def test_probabilities_of_another_search_are_none_of_the_policys() -> None:
    first = _first()
    drawn: list[float] = []

    class Listening(CountingPolicy):
        def proposed(self, sample: int, proposal: Proposal) -> None:
            drawn.append(proposal.log_probability)
            super().proposed(sample, proposal)

    bench = Bench(policy=Listening, find_earlier=_finding(first))
    bench.run(make_experiment(budget={"samples": 5}, searcher=WARM))
    assert [math.isnan(each) for each in drawn] == [True] * 12 + [False] * 5


def test_the_policy_learns_the_earlier_samples_before_its_first_proposal() -> None:
    first = _first(["result", "OutOfMemory", "diverged"])
    bench = Bench(find_earlier=_finding(first))
    assert bench.run(make_experiment(budget={"samples": 5}, searcher=WARM)) is Exit.FINISHED

    kinds = [record.type for record in bench.world.records()]
    assert max(at for at, kind in enumerate(kinds) if kind == "Inherited") < kinds.index("Proposed")
    (warm,) = bench.of_kind(WarmStarted)
    assert (warm.experiment, warm.uid, warm.samples, warm.first_sample) == ("first", "first-uid", 11, 12)
    observed, inherited = first.of_kind(Observed), bench.of_kind(Inherited)
    assert [(record.sample, record.diverged) for record in inherited] == [
        (record.sample, record.diverged) for record in observed
    ]
    assert [record.reward for record in inherited] == pytest.approx([record.reward for record in observed])
    proposals = {record.sample: record for record in first.of_kind(Proposed)}
    assert all(record.architecture == proposals[record.sample].architecture for record in inherited)

    # Numbers go on; budget, best and counters are of this search alone.
    assert [record.sample for record in bench.of_kind(Proposed)] == [12, 13, 14, 15, 16]
    samples, best, policy = bench.sink.last.samples, bench.sink.last.best, bench.sink.last.policy
    assert samples is not None and best is not None and policy is not None
    assert (samples.inherited, samples.proposed, samples.observed, best.sample >= 12) == (11, 5, 5, True)
    assert bench.sink.last.progress == "5/5" and policy.updates == 16


def test_replay_never_needs_the_other_log_again() -> None:
    first = _first()
    bench = Bench(find_earlier=_finding(first))
    progress = bench.world.progress
    bench.world.progress = lambda: bool(bench.search.stop()) or True  # type: ignore[func-returns-value, method-assign]
    experiment = make_experiment(budget={"samples": 5}, searcher=WARM)
    assert bench.run(experiment) is Exit.STOPPED
    first.world.store.objects.clear()  # type: ignore[attr-defined]
    bench.world.progress = progress  # type: ignore[method-assign]
    assert bench.run(experiment) is Exit.FINISHED
    records = bench.world.records()
    state = fold(records, CountingPolicy)
    assert state is not None and state.core == bench.search.state.core
    assert torch.equal(state.policy.dump()["state"], bench.search.state.policy.dump()["state"])


def test_a_warm_start_of_a_warm_start_inherits_everything() -> None:
    first = _first()
    second = Bench(find_earlier=_finding(first))
    second.run(make_experiment(budget={"samples": 4}, searcher=WARM))
    third = Bench(find_earlier=_finding(second))
    third.run(make_experiment(budget={"samples": 2}, searcher=WARM))
    assert sorted(record.sample for record in third.of_kind(Inherited)) == list(range(16))
    assert [record.sample for record in third.of_kind(Proposed)] == [16, 17]


def test_reused_results_and_the_random_arm_are_inherited_and_final_trainings_are_not() -> None:
    searcher = {"seed": 7, "random": {}, "control": {"random": "0.3"}}
    objective = {"penalties": [{"metric": "parameters", "target": "1000"}]}
    first = _first(budget={"samples": 80}, searcher=searcher, finalTraining={"top": 2, "epochs": 2})
    assert any(record.reused is not None for record in first.of_kind(Observed))
    bench = Bench(find_earlier=_finding(first))
    # Another objective: the rewards are computed anew, from what was reported.
    bench.run(make_experiment(budget={"samples": 1}, searcher=WARM, objective=objective))
    inherited = bench.of_kind(Inherited)
    assert len(inherited) == 80
    for record in inherited:
        assert record.reward == pytest.approx(record.metrics["accuracy"] ** 3 * 2**-0.07)


@pytest.mark.parametrize("kind", ["ppo", "reinforce", "evolution", "tpe", "guided"])
@pytest.mark.slow
def test_every_policy_takes_a_warm_start(kind: str) -> None:
    first = _first()
    bench = Bench(find_earlier=_finding(first), policy=make_policy)
    searcher = {"seed": 7, kind: {}, "duplicates": "Train", "warmStart": {"experiment": "first"}}
    assert bench.run(make_experiment(budget={"samples": 6}, searcher=searcher)) is Exit.FINISHED
    assert len(bench.of_kind(Inherited)) == 12 and len(bench.of_kind(Observed)) == 6


def test_another_space_is_refused_with_the_cure() -> None:
    first = _first()
    other = {"convolutional": {"layers": {"initial": 3}}}
    bench = Bench(find_earlier=_finding(first))
    with pytest.raises(EarlierUnsuitable, match=r"first searched another space.*create a new experiment"):
        bench.run(make_experiment(searcher=WARM, searchSpace=other))
    assert bench.world.records() == []


def test_a_metric_that_the_earlier_one_did_not_report_is_named() -> None:
    bench = Bench(find_earlier=_finding(_first()))
    with pytest.raises(EarlierUnsuitable, match=r"sample \d+ of the experiment first has no reward.*no perplexity"):
        bench.run(make_experiment(searcher=WARM, objective={"metric": "perplexity"}))


# ---------------------------------------------------------------- transfer


def _fixed(**spec: object) -> dict[str, object]:
    return {"searchSpace": {"fixed": {"experiment": "first"}}, "searcher": {"seed": 1, "random": {}}, **spec}


def test_the_one_architecture_is_trained_again_and_again_and_finally() -> None:
    first = _first()
    found = first.sink.last.best
    assert found is not None
    bench = Bench(find_earlier=_finding(first))
    final = {"top": 3, "epochs": 7, "grid": {"learningRate": ["0.1", "0.2"]}}
    bench.run(make_experiment(**_fixed(budget={"samples": 4}, finalTraining=final)))
    (started,) = bench.of_kind(Started)
    assert started.architecture is not None and started.architecture.digest == found.digest
    assert {record.architecture.digest for record in bench.of_kind(Proposed)} == {found.digest}
    # Four repeats, two combinations of the grid, one test: nothing is answered from the log.
    assert len(bench.of_kind(Launched)) == 4 + 2 + 1
    assert {record.reused for record in bench.of_kind(Observed)} == {None}
    assert bench.sink.last.final is not None and bench.sink.last.final.total == 2


@pytest.mark.parametrize("kind", ["ppo", "reinforce", "guided", "evolution", "tpe"])
def test_every_policy_copes_with_a_space_of_one(kind: str) -> None:
    bench = Bench(find_earlier=_finding(_first()), policy=make_policy)
    spec = _fixed(budget={"samples": 6}, searcher={"seed": 1, kind: {}})
    assert bench.run(make_experiment(**spec)) is Exit.FINISHED
    assert len(bench.of_kind(Observed)) == 6


def test_what_was_read_once_stays_whatever_becomes_of_the_other() -> None:
    first = _first()
    bench = Bench(find_earlier=_finding(first))
    bench.world.progress = lambda: bool(bench.search.stop()) or True  # type: ignore[func-returns-value, method-assign]
    experiment = make_experiment(**_fixed(budget={"samples": 4}))
    assert bench.run(experiment) is Exit.STOPPED
    first.world.store.objects.clear()  # type: ignore[attr-defined]
    del bench.world.progress
    assert bench.run(experiment, snapshot_every=1) is Exit.FINISHED
    assert [record.architecture == bench.of_kind(Started)[0].architecture for record in bench.of_kind(Started)] == [
        True,
        True,
    ]
    assert bench.run(experiment) is Exit.FINISHED, "a snapshot knows the architecture too"


def test_a_search_that_has_not_ended_is_waited_for() -> None:
    first = Bench()
    first.world.progress = lambda: bool(first.search.stop()) or True  # type: ignore[func-returns-value, method-assign]
    first.run(make_experiment())
    bench = Bench(find_earlier=_finding(first))
    with pytest.raises(EarlierMissing, match="first has not ended"):
        bench.run(make_experiment(**_fixed()))
    del first.world.progress
    first.run(make_experiment())
    assert bench.run(make_experiment(**_fixed(budget={"samples": 2}))) is Exit.FINISHED


def test_a_search_that_found_nothing_has_nothing_to_give() -> None:
    first = _first(["OutOfMemory"] * 12)
    assert len(first.of_kind(Lost)) == 12
    with pytest.raises(EarlierUnsuitable, match="first has found no architecture"):
        Bench(find_earlier=_finding(first)).run(make_experiment(**_fixed()))


def test_what_was_found_is_trained_modified_and_the_log_says_as_what() -> None:
    """Section 4.1's ablations and its largest network: filters and blocks stay, connections or widths change."""
    first = _first()
    found = found_architecture(_finding(first)(StoreLocation(folder="x"), "first", None), FIRST, DIGITS)
    assert isinstance(found, ConvolutionalArchitecture)
    for change, filters, connected in (
        ({"allSkips": True}, 0, lambda index: tuple(range(index))),
        ({"noSkips": True}, 0, lambda index: (index - 1,) if index else ()),
        ({"extraFilters": 40}, 40, lambda index: found.layers[index].inputs),
        ({"extraFilters": 3, "noSkips": True}, 3, lambda index: (index - 1,) if index else ()),
    ):
        bench = Bench(find_earlier=_finding(first))
        space = {"fixed": {"experiment": "first", **change}}
        assert bench.run(make_experiment(**_fixed(budget={"samples": 2}, searchSpace=space))) is Exit.FINISHED
        for record in bench.of_kind(Proposed):
            assert isinstance(record.architecture, ConvolutionalArchitecture)
            assert len(record.architecture.layers) == len(found.layers)
            for index, (layer, before) in enumerate(zip(record.architecture.layers, found.layers, strict=True)):
                kept = {"filters", "inputs"}
                assert layer.model_dump(exclude=kept) == before.model_dump(exclude=kept)
                assert layer.filters == before.filters + filters
                assert layer.inputs == connected(index)
        (started,) = bench.of_kind(Started)
        assert started.architecture == bench.of_kind(Proposed)[0].architecture


def test_the_dataset_must_suit_the_architecture() -> None:
    earlier = Earlier("first", None, _first().world.store)
    assert found_architecture(earlier, FIRST, DIGITS).space == "convolutional"
    assert found_architecture(earlier, FIRST, CUSTOM).space == "convolutional"
    with pytest.raises(EarlierUnsuitable, match=r"space convolutional, which needs trainer.dataset to be images"):
        found_architecture(earlier, FIRST, TEXT)
    store = MemoryStore()
    store.objects.update(earlier.store.objects)  # type: ignore[attr-defined]
    space = search_space(make_experiment(searchSpace={"recurrentCell": {"base": 2}}).spec.search_space)
    cell = space.decode((0,) * len(space.decisions(0)))
    store.put(names.BEST_ARCHITECTURE, cell.canonical().encode())
    assert found_architecture(Earlier("first", None, store), FIRST, TEXT) == cell
    with pytest.raises(EarlierUnsuitable, match=r"space recurrentCell, which needs trainer.dataset to be text"):
        found_architecture(Earlier("first", None, store), FIRST, DIGITS)
    wider = FixedSpec(experiment="first", extra_filters=40)
    cells = search_space(make_experiment(searchSpace={"convolutionalCell": {}}).spec.search_space).decode((1,) * 6)
    other = MemoryStore()
    other.objects.update(earlier.store.objects)  # type: ignore[attr-defined]
    other.put(names.BEST_ARCHITECTURE, cells.canonical().encode())
    assert found_architecture(Earlier("first", None, other), FIRST, DIGITS) == cells
    larger = FixedSpec(experiment="first", cells_per_stage=7, filters=64)
    assert found_architecture(Earlier("first", None, other), larger, DIGITS).short() == cells.short().replace(
        "dense 3x5:16 ", "dense 3x7:64 "
    )
    with pytest.raises(EarlierUnsuitable, match="first has found with 7 cells in each stage and 64 filters in the"):
        found_architecture(earlier, larger, DIGITS)
    with pytest.raises(EarlierUnsuitable, match="which only convolutional networks have: it is of the space convolut"):
        found_architecture(Earlier("first", None, other), FixedSpec(experiment="first", extra_filters=1), DIGITS)
    with pytest.raises(EarlierUnsuitable, match=r"space convolutionalCell, which needs trainer.dataset to be images"):
        found_architecture(Earlier("first", None, other), FIRST, TEXT)
    with pytest.raises(EarlierUnsuitable, match="first has found with 40 filters more in each layer, which only"):
        found_architecture(Earlier("first", None, store), wider, TEXT)


# ---------------------------------------------------------------- finding it


def _begin_log(store_location: StoreLocation) -> None:
    spec = make_experiment().spec
    started = Started.model_validate(
        {"epoch": 1, "moment": "2026-01-01T00:00:00Z"}
        | {name: getattr(spec, name) for name in ("search_space", "searcher", "objective")}
    )
    Log(open_store(store_location)).append([started])


def test_a_local_run_is_the_folder_beside(tmp_path: Path) -> None:
    ours = StoreLocation(folder=str(tmp_path / "second"))
    with pytest.raises(EarlierMissing, match=f"no log of an experiment first in {tmp_path / 'first'}"):
        find(ours, "first", None)
    _begin_log(StoreLocation(folder=str(tmp_path / "first")))
    assert find(ours, "first", None).uid is None
    (tmp_path / "first" / "experiment.json").write_text('{"metadata": {"uid": "abc"}}')
    assert find(ours, "first", "abc").uid == "abc"
    with pytest.raises(EarlierMissing, match=r"with the uid other in .* has the uid abc"):
        find(ours, "first", "other")
    (tmp_path / "first" / "experiment.json").write_text("[]")
    with pytest.raises(EarlierUnsuitable, match="is not the manifest of a run"):
        find(ours, "first", None)


@pytest.mark.s3
@pytest.mark.parametrize("root", ["", "nas/deep"])
def test_in_a_bucket_it_is_found_by_its_name_or_its_uid(s3_location: S3Location, root: str) -> None:
    def at(name: str, uid: str) -> StoreLocation:
        prefix = names.experiment_prefix(root, "default", name, uid)
        return StoreLocation(s3=s3_location.model_copy(update={"prefix": prefix}))

    ours = at("second", "u9")
    with pytest.raises(EarlierMissing, match="no log of an experiment first below s3://"):
        find(ours, "first", None)
    _begin_log(at("first", "u1"))
    _begin_log(at("first-too", "u2"))
    _begin_log(ours)
    assert find(ours, "first", None).uid == "u1"
    with pytest.raises(EarlierMissing, match=r"no log of an experiment first at s3://.*/u7/"):
        find(ours, "first", "u7")
    _begin_log(at("first", "u3"))
    with pytest.raises(EarlierUnsuitable, match=r"2 experiments with the name first.*u1, u3"):
        find(ours, "first", None)
    assert find(ours, "first", "u3").uid == "u3"
    # One that follows up a deleted experiment of its own name does not find itself.
    assert find(at("first", "u1"), "first", None).uid == "u3"
