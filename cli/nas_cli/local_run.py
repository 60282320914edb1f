"""``nas run``: the same search as in a cluster, with processes for Jobs and a folder for the bucket.

Everything is in the folder: log, results, snapshots and ``best/`` as in a bucket, ``experiment.json`` with
the manifest and the run's uid, ``status.json``, and ``children/`` with what each child said.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from uuid import uuid4

import structlog
from rich.console import Console
from rich.text import Text

from nas_api import custom_trainer, names
from nas_api.child import StoreLocation
from nas_api.experiment import NASExperiment
from nas_api.search_space import arranged
from nas_cli.display import Progress, Status, architecture_table, best_text, policy_text
from nas_cli.errors import Refusal
from nas_cli.folders import is_run, locked
from nas_cli.local_command import CommandTrainer
from nas_cli.local_executor import LocalExecutor, Trainer
from nas_cli.local_status import StatusFile
from nas_cli.local_trainer import BuiltInTrainer
from nas_cli.run_folder import read_run, write_run
from nas_controller.errors import EarlierMissing, EarlierUnsuitable, SearchChanged
from nas_controller.executor import Launch
from nas_controller.policies.factory import make_policy
from nas_controller.search import Exit, Search
from nas_controller.state import MakePolicy
from nas_controller.status import SearchStatus, StatusSink
from nas_log.errors import LogDamaged
from nas_report.writer import ReportWriter
from nas_store import Store, open_store
from nas_store.errors import StoreError

_RESULTS_AT_ONCE = 8
_NAMESPACE = "local"


def run(
    experiment: NASExperiment,
    folder: Path,
    parallelism: int | None,
    console: Console,
    *,
    here: Path,
    again: str,
    make_policy: MakePolicy = make_policy,
) -> None:
    """Search until the budget is spent or somebody presses Ctrl-C; goes on where an earlier run stopped.

    Args:
        experiment: what the manifest says.
        folder: where everything is kept.
        parallelism: children at once; as many as the manifest says and the machine has cores for when None.
        console: where progress is shown.
        here: the folder of the manifest, in which a user's own trainer runs.
        again: the command that goes on with this run, for people.
        make_policy: builds what proposes architectures; the manifest's searcher when not given.

    Raises:
        Refusal: the folder belongs to another search or another process, or cannot be used; or the search
            has failed.
    """
    experiment = _sized(experiment, parallelism, console)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"{folder} cannot be created ({error.strerror}): choose another with --folder") from error
    with locked(folder) as free:
        if not free:
            raise Refusal(f"another `nas run` is at work in {folder}: wait for it, or end it with Ctrl-C")
        experiment = _identified(experiment, folder)
        location = StoreLocation(folder=str(folder.absolute()))

        def deadline(launch: Launch) -> float:
            one = experiment.spec.deadline(final=launch.inputs[0].final is not None)
            return len(launch.inputs) * one.total_seconds()

        store = open_store(location)
        progress = Progress(console, experiment.metadata.name, experiment.spec.objective.metric)
        trainer = _trainer(experiment, here, folder / "children", store, progress)
        executor = LocalExecutor(trainer, deadline, progress.failed)
        with progress:
            sink = _Sinks(progress, StatusFile(folder))
            search = Search(
                experiment,
                store=store,
                location=location,
                executor=executor,
                sink=sink,
                pool=ThreadPoolExecutor(_RESULTS_AT_ONCE, thread_name_prefix="results"),
                make_policy=make_policy,
            )
            with _stopped_by_signals(search):
                try:
                    with ReportWriter(store, lambda: experiment):
                        why = search.run()
                except (SearchChanged, LogDamaged, StoreError) as error:
                    raise Refusal(f"{folder} cannot be used: {error}") from error
                except (EarlierMissing, EarlierUnsuitable) as error:
                    raise Refusal(str(error)) from error
                finally:
                    executor.close()
        _last_words(experiment, folder, why, search, progress.status, console, again)


class _Sinks:
    """See :class:`nas_controller.status.StatusSink`: several as one."""

    def __init__(self, *sinks: StatusSink) -> None:
        self._sinks = sinks

    def publish(self, status: SearchStatus) -> None:
        for sink in self._sinks:
            sink.publish(status)


def _trainer(experiment: NASExperiment, here: Path, folder: Path, store: Store, progress: Progress) -> Trainer:
    spec = experiment.spec.trainer
    if spec.dataset.custom is None:
        return BuiltInTrainer(folder)
    return CommandTrainer(custom_trainer.command(spec), here, folder, store, progress.failed)


def _sized(experiment: NASExperiment, parallelism: int | None, console: Console) -> NASExperiment:
    """Return the experiment with no more children of ours at once than the machine has cores for."""
    spec = experiment.spec
    own = spec.trainer.dataset.custom is not None
    # What a user's own trainer needs of this machine is not ours to know.
    room = spec.parallelism if own else max(1, (os.cpu_count() or 1) // spec.trainer.threads)
    chosen = parallelism if parallelism is not None else min(spec.parallelism, room)
    if parallelism is None and chosen < spec.parallelism:
        console.print(
            f"{chosen} children at once, not {spec.parallelism}: this machine has {os.cpu_count()} cores"
            " (--parallelism overrides this)",
            style="dim",
            highlight=False,
        )
    if spec.trainer.image is not None and not own:
        console.print("spec.trainer.image is not used here: children run the built-in trainer", style="yellow")
    return experiment.model_copy(update={"spec": spec.model_copy(update={"parallelism": chosen, "suspend": False})})


def _identified(experiment: NASExperiment, folder: Path) -> NASExperiment:
    """Return the experiment with the run's uid, which is made up once and kept in the folder.

    Raises:
        Refusal: the folder holds another search.
    """
    uid = str(uuid4())
    if is_run(folder):
        before = read_run(folder)
        uid = before.metadata.uid
        differing = [place for place, value in _identity(experiment).items() if value != _identity(before)[place]]
        if differing:
            raise Refusal(
                f"{folder} holds another search than the manifest (different: {', '.join(differing)}); choose another"
                f" folder with --folder, or remove {folder} to start anew"
            )
    metadata = experiment.metadata.model_copy(update={"uid": uid, "namespace": _NAMESPACE})
    experiment = experiment.model_copy(update={"metadata": metadata})
    # Budget and trainer may have changed since: the newest manifest is the one to show.
    write_run(folder, experiment)
    return experiment


def _identity(experiment: NASExperiment) -> dict[str, object]:
    """Return what cannot change in the course of a search, by its place in the manifest."""
    spec = experiment.spec
    return {
        "metadata.name": experiment.metadata.name,
        "spec.searchSpace": spec.search_space,
        "spec.searcher": spec.searcher,
        "spec.objective": spec.objective,
    }


@contextmanager
def _stopped_by_signals(search: Search) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the search in order, from the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        search.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_words(
    experiment: NASExperiment,
    folder: Path,
    why: Exit,
    search: Search,
    status: Status,
    console: Console,
    again: str,
) -> None:
    if why is Exit.FENCED:
        raise Refusal(f"another process has taken over the search in {folder}: this one has stopped")
    if why is Exit.STOPPED:
        console.print(Text.assemble("\nStopped; nothing is lost. Resume with: ", (again, "bold")), soft_wrap=True)
        return
    outcome = status.outcome
    if outcome is not None and outcome.type == "Failed":
        raise Refusal(f"the search has failed: {outcome.message} Children's logs are in {folder / 'children'}.")
    state = search.state
    best = state.core.best
    if best is None or status.best is None:
        raise Refusal(f"the search has ended without a single result; children's logs are in {folder / 'children'}")
    metric = experiment.spec.objective.metric
    console.print(Text.assemble(("\nComplete", "bold"), f": the best network has {best_text(status.best, metric)}"))
    stage = state.core.final
    winner = stage.winner if stage is not None else None
    if stage is not None:
        # The final training may prefer another of the best: that one is in best/ then.
        console.print(stage.summary(metric), highlight=False)
    architecture = arranged(state.space, best.architecture if winner is None else winner.architecture)
    console.print(architecture_table(architecture, experiment.spec.trainer.dataset.channels))
    if status.policy is not None and (text := policy_text(status.policy)):
        console.print(text, style="dim", highlight=False, soft_wrap=True)
    module = folder / names.BEST_MODULE
    if module.exists():
        words = Text.assemble("Its code: ", (str(module), "bold"), f"  (nas best {folder} --code)")
    else:
        choices = str(folder / names.BEST_ARCHITECTURE)
        words = Text.assemble("Its choices: ", (choices, "bold"), f"  (nas best {folder} -o json)")
    console.print(words, soft_wrap=True)
    if (folder / names.REPORT).exists():
        console.print(Text.assemble("Its report: ", (str(folder / names.REPORT), "bold")), soft_wrap=True)


def silence_logs(verbose: bool) -> None:
    """Keep the search's own log off the display, unless somebody asks for it."""
    # As structlog has it, but without the values of variables in tracebacks.
    for_people = structlog.dev.ConsoleRenderer(
        colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(
        processors=[*structlog.get_config()["processors"][:-1], for_people],
        wrapper_class=structlog.make_filtering_bound_logger("info" if verbose else "critical"),
    )
