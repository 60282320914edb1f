"""``nas validate``: what is wrong with the manifests of a file, and what not everybody may ask for, with its line."""

from pathlib import Path

from nas_cli.errors import Refusal
from nas_cli.manifest import read_documents
from nas_cli.terminal import echo


def validate_file(file: Path) -> None:
    """Print what each document of a file is, and on standard error its faults and what it needs a right for.

    Raises:
        Refusal: the file cannot be read, or holds no experiment.
        SystemExit: with 1, one has faults.
    """
    try:
        documents = read_documents(file)
    except OSError as error:
        raise Refusal(f"{file} cannot be read: {error.strerror}") from error
    ours = [document for document in documents if not document.foreign]
    for document in documents:
        if document.foreign:
            echo(f"{file}: {document.title} is of another kind: skipped")
        elif not document.faults:
            echo(f"{file}: {document.title} is valid")
    for document in ours:
        for fault in document.faults:
            echo(f"{file}:{fault.line}: {fault.text}", err=True)
        for remark in document.remarks:
            echo(f"{file}:{remark.line}: note: {remark.text}", err=True)
    if not ours:
        raise Refusal(f"{file} holds no NASExperiment")
    if any(document.faults for document in ours):
        raise SystemExit(1)
