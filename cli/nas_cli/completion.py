"""What a shell offers while a command line is typed: experiments of the cluster, folders of local runs, and files.

Nobody should wait at a key, and nothing may be printed into the line that is being typed: torch and our models are not
loaded, the cluster's client only where there may be a cluster, and one that does not answer soon has no experiments.
"""

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from nas_api.names import RUN_MANIFEST
from nas_cli.folders import RUNS

# For the cluster's whole answer, a login helper's included.
_PATIENCE_SECONDS = 2.0
# What kubectl, as every program that is built on cobra, takes for a number on the last line.
_LET_THE_SHELL_OFFER_FILES, _NO_FILES, _FOLDERS_ONLY = 0, 4, 16


def experiments_and_runs(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Return what NAME may be, as click asks for it: experiments, runs in nas-runs/ and here, or another folder."""
    found = {run for run in _runs(incomplete) if run.startswith(incomplete)}
    if "/" not in incomplete:
        given = context.params.get("namespace"), context.params.get("context")
        found |= {name for name in _experiments(*given) if name.startswith(incomplete)}
    elif not found:
        return [CompletionItem(incomplete, type="dir")]
    return [CompletionItem(name) for name in sorted(found)]


def _runs(incomplete: str) -> Iterator[str]:
    """Yield the folders of local runs that are near, written as the word begins."""
    begun = incomplete.rpartition("/")[0]
    # By the words before their names: those are to stay as they were typed.
    for words in [f"{begun}/"] if "/" in incomplete else ["", f"{RUNS}/"]:
        # Nothing where there is no such folder, or nobody may look into it.
        for found in Path(words).glob(f"*/{RUN_MANIFEST}"):
            yield words + found.parent.name


def _experiments(namespace: str | None, context: str | None) -> list[str]:
    """Return the names of a namespace's experiments; none where the cluster does not tell them soon."""
    places = ("KUBECONFIG", "KUBERNETES_SERVICE_HOST")
    if not any(map(os.environ.get, places)) and not Path("~/.kube/config").expanduser().exists():
        return []
    # Half a second, and in vain without a cluster.
    from nas_kube.client import KubeClient
    from nas_kube.errors import KubeError
    from nas_kube.resources import EXPERIMENTS

    names: list[str] = []

    def ask() -> None:
        try:
            client = KubeClient.from_environment(context=context, user_agent="nas")
            items = client.list(EXPERIMENTS, namespace or client.namespace).items
        except KubeError:
            # The command itself will say what is wrong.
            return
        names.extend(item["metadata"]["name"] for item in items)

    # Left behind where it takes longer: neither a name server nor a login helper has a time-out of ours.
    thread = threading.Thread(target=ask, daemon=True)
    with redirect_stderr(io.StringIO()):
        thread.start()
        thread.join(_PATIENCE_SECONDS)
    return names


def script(command: click.Command, shell: str) -> str:
    """Return the script that teaches a shell to complete ``nas``.

    Args:
        command: what is completed.
        shell: bash, zsh or fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    return kind(command, {}, "nas", "_NAS_COMPLETE").source()


class KubectlComplete(ShellComplete):
    """For kubectl, which hands over all words behind its plugin's name, and takes what cobra's programs print."""

    name = "kubectl"

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the complete words, and the one that is being typed: empty where it has not begun."""
        *words, incomplete = sys.argv[1:] or [""]
        return words, incomplete

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Return a line: the word, and what it is for."""
        return f"{item.value}\t{item.help}" if item.help else str(item.value)

    def complete(self) -> str:
        """Return all lines; the last says what the shell shall offer beside them."""
        items = self.get_completions(*self.get_completion_args())
        kinds = {item.type for item in items}
        shell = _LET_THE_SHELL_OFFER_FILES if "file" in kinds else _FOLDERS_ONLY if "dir" in kinds else _NO_FILES
        return "\n".join([*(self.format_completion(item) for item in items if item.type == "plain"), f":{shell}"])
