"""``nas export``: the best network, handed over as a folder that needs nothing of ours.

What the controller and the final training left in the store is copied as it is, once the search's log vouches for it;
the code that builds the network is made here. Beside it comes a page that says how to feed it, with code that the tests
run. Or the trained network alone, as servers and registries of models load it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nas_api import model_formats, names
from nas_api.architecture import Architecture
from nas_api.experiment import NASExperiment
from nas_api.handover import Preprocessing
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_cli.errors import Refusal
from nas_cli.experiment_store import read_evidence, reading
from nas_log.best import KEYS, Best, BestIsReplaced, BestTampered, read_best
from nas_store import Store

README = "README.md"


@dataclass(frozen=True)
class HandedOver:
    """What was written."""

    files: tuple[str, ...]
    """Names in the folder, in the order they were written."""
    trained: bool
    """Whether the weights of a final training are among them."""
    own: bool
    """Whether a user's own trainer has trained it, which keeps the weights."""
    unverified: tuple[str, ...]
    """Those of a trained network that the log, which an older version has written, does not vouch for."""


def hand_over(experiment: NASExperiment, store: Store, folder: Path) -> HandedOver:
    """Write the best network into a folder; files of an earlier export are replaced or removed, others stay.

    Raises:
        Refusal: there is no best network yet, it is being replaced by a better one, it is not what the search has left,
            or the store or the folder cannot be used.
    """
    best = _read(experiment, store)
    found = {**best.files, README: _page(experiment, best).encode()}
    _write(folder, found, stale=map(names.file, KEYS))
    return HandedOver(tuple(found), names.file(names.BEST_WEIGHTS) in found, _own(experiment), best.unverified)


def hand_over_model(experiment: NASExperiment, store: Store, folder: Path, layout: str) -> HandedOver:
    """Write the trained network into a folder in somebody's layout.

    Args:
        experiment: whose network it is.
        store: its objects.
        folder: files in it are replaced, or stay.
        layout: ``kserve`` or ``mlflow``.

    Raises:
        Refusal: as for :func:`hand_over`, and where there is no trained network.
    """
    name = experiment.metadata.name
    if _own(experiment):
        raise Refusal("the trained network is your own trainer's: only --format folder can hand over what there is")
    best = _read(experiment, store)
    try:
        model = model_formats.TrainedModel.of(best.files)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        # Only weights that nothing vouches for.
        raise Refusal(f"the weights of {name} are none: {error}") from error
    if model is None:
        raise Refusal(
            f"{name} has no trained network: that is what spec.finalTraining leaves at its end"
            f" (`nas status {name}`); --format folder hands over what there is"
        )
    files = model_formats.kserve(name, model) if layout == "kserve" else model_formats.mlflow(model)
    _write(folder, files)
    return HandedOver(tuple(files), trained=True, own=False, unverified=best.unverified)


def _own(experiment: NASExperiment) -> bool:
    return experiment.spec.trainer.dataset.custom is not None


def _read(experiment: NASExperiment, store: Store) -> Best:
    try:
        with reading(experiment):
            best = read_best(
                store,
                experiment.spec.search_space,
                experiment.spec.trainer.dataset,
                lambda: read_evidence(experiment, store),
            )
    except BestIsReplaced as error:
        raise Refusal(f"{error}: run the command again") from error
    except BestTampered as error:
        raise Refusal(f"the best network is not handed over: {error}") from error
    if best is None:
        name = experiment.metadata.name
        raise Refusal(f"{name} has no best network yet: `nas status {name}` tells how it is going")
    return best


def _write(folder: Path, files: Mapping[str, bytes], stale: Iterable[str] = ()) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in stale:
            if name not in files:
                (folder / name).unlink(missing_ok=True)
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    except OSError as error:
        raise Refusal(f"{folder} cannot be written ({error.strerror}): choose another with -o") from error


_MEANINGS = {
    names.file(names.BEST_ARCHITECTURE): "the architecture: JSON with a version, as the search wrote it",
    names.file(names.BEST_MODULE): "a Python module that builds the network; it needs only torch",
    names.file(names.BEST_VOCABULARY): "all tokens in the order of their numbers, and how a text becomes tokens",
    names.file(names.BEST_PREPROCESSING): "how pixels become the network's input, and the names of the classes",
    names.file(names.BEST_ONNX): "the trained network for onnxruntime and others",
    names.file(names.BEST_WEIGHTS): "the weights of the final training, by the module's parameter names",
    names.file(names.BEST_PROVENANCE): "where all this comes from: experiment, sample, metrics, how it was trained",
}


_VERIFY = """\
# What the search's log says of these files.
for name, digest in {digests}.items():
    with open(name, "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != digest:
            raise SystemExit(f"{{name}} is not the file that was tested")
"""

_LOAD_IMAGES = """\
```python
import hashlib
import json

import torch
from safetensors.torch import load_file
from network import Network

{verify}network = Network()
network.load_state_dict(load_file("weights.safetensors"))
network.eval()
with open("preprocessing.json", "rb") as file:
    before = json.load(file)
# An image (n, channels, height, width) with values from 0 to {brightest:g}: put yours here.
example = {brightest:g} * torch.rand(1, {channels}, {height}, {width})
{prepare}with torch.no_grad():
    output = network(image)
print(before["classes"][output[0].argmax()])
```
"""

_SCALED = """\
image = (example - before["mean"]) / before["deviation"]
"""

_WHITENED = """\
image = example - example.mean((1, 2, 3), keepdim=True)
image /= image.std((1, 2, 3), keepdim=True, correction=0).clamp_min(image[0].numel() ** -0.5)
"""

_CROPPED = """\
size, edge = before["height"] + before["resized"], before["resized"] // 2
image = torch.nn.functional.interpolate(image, size, mode="bilinear", align_corners=False)
image = image[:, :, edge:-edge, edge:-edge]
"""

_ONNX_IMAGES = """\
Or with onnxruntime alone, which takes the image as it is and does the rest itself:

```python
import onnxruntime

session = onnxruntime.InferenceSession("network.onnx")
output = session.run(["logits"], {"pixels": example.numpy()})[0]
```
"""

_FRESH_IMAGES = """\
```python
import torch
from network import Network

network = Network()
network.eval()
image = torch.randn(1, {channels}, {height}, {width})
with torch.no_grad():
    output = network(image)
```
"""

_LOAD_TEXT = """\
```python
import hashlib
import json

import torch
from safetensors.torch import load_file
from network import Network, numbers, perplexity

{verify}network = Network.of(load_file("weights.safetensors"))
network.eval()
with open("vocabulary.json", "rb") as file:
    vocabulary = json.load(file)
# A text, line by line: put yours here.
text = "a line of words\\nand another one\\n"
example = numbers(text, vocabulary)
print(perplexity(network, example))
with torch.no_grad():
    output, state = network(example[:, None])
print(vocabulary["tokens"][output[-1, 0].argmax()])
```
"""

_ONNX_TEXT = """\
Or with onnxruntime alone, step by step:

```python
import numpy
import onnxruntime

session = onnxruntime.InferenceSession("network.onnx")
states, memories = (
    numpy.zeros([each.shape[0], 1, each.shape[2]], numpy.float32) for each in session.get_inputs()[1:]
)
for number in example.numpy():
    output, states, memories = session.run(None, {"words": number[None], "states": states, "memories": memories})
```
"""

_MEANING_TEXT = """\
Numbers are (steps, batch). Outputs are the logits of what follows each number, and the state from which the next piece
of text continues.
"""

_FRESH_TEXT = """\
```python
import torch
from network import Network

network = Network(words=100, width=32, layers={layers}, shared_embeddings={shared})
network.eval()
with torch.no_grad():
    output, state = network(torch.randint(100, (5, 1)))
```
"""

_NO_WEIGHTS = """\
There are no weights: they come from `spec.finalTraining`, which the experiment does not have, or has not finished. The
module builds the network with fresh ones.
"""

_OWN_WEIGHTS = """\
There are no weights: your own trainer keeps those. The module builds the network with fresh ones.
"""

_RUN_HERE = "Run in this folder:\n"


def _page(experiment: NASExperiment, best: Best) -> str:
    """Return the folder's README."""
    architecture, found = best.architecture, best.files
    metric, dataset = experiment.spec.objective.metric, experiment.spec.trainer.dataset
    data = next(iter(dataset.model_dump(by_alias=True, exclude_none=True)))
    table = "\n".join(f"| {name} | {meaning} |" for name, meaning in _MEANINGS.items() if name in found)
    parts = [
        f"# The best network of {experiment.metadata.name}\n",
        f"Found for {metric} on {data}; digest {architecture.digest}.\n",
        f"    {architecture.short()}\n",
        f"| file | what |\n|---|---|\n{table}\n",
    ]
    if names.file(names.BEST_MODULE) not in found:
        parts.append("Only the trainer that trained it knows how to build it, and has its weights.\n")
    elif names.file(names.BEST_WEIGHTS) not in found:
        why = _NO_WEIGHTS if experiment.spec.trainer.dataset.custom is None else _OWN_WEIGHTS
        parts += [why, _RUN_HERE, _fresh(experiment, architecture)]
    elif (preprocessing := found.get(names.file(names.BEST_PREPROCESSING))) is not None:
        parts += [_RUN_HERE, _image_code(Preprocessing.model_validate_json(preprocessing), _verify(best))]
        parts += [_ONNX_IMAGES] if names.file(names.BEST_ONNX) in found else []
    elif names.file(names.BEST_VOCABULARY) in found:
        parts += [_RUN_HERE, _LOAD_TEXT.format(verify=_verify(best))]
        parts += [_ONNX_TEXT] if names.file(names.BEST_ONNX) in found else []
        parts.append(_MEANING_TEXT)
    return "\n".join(parts)


def _fresh(experiment: NASExperiment, architecture: Architecture) -> str:
    """Return code that makes a network without training and runs it."""
    trainer = experiment.spec.trainer
    if isinstance(architecture, RecurrentCellArchitecture):
        return _FRESH_TEXT.format(layers=trainer.language.layers, shared=trainer.language.shared_embeddings)
    height, width = trainer.dataset.size
    return _FRESH_IMAGES.format(channels=trainer.dataset.channels, height=height, width=width)


def _verify(best: Best) -> str:
    """Return code that holds the folder's files against their digests; empty where the log has none."""
    return _VERIFY.format(digests=json.dumps(best.digests, indent=4)) if best.digests else ""


def _image_code(before: Preprocessing, verify: str) -> str:
    """Return code that makes the trained network and shows it an image as it was stored."""
    prepare = (_WHITENED if before.mean is None else _SCALED) + (_CROPPED if before.resized else "")
    return _LOAD_IMAGES.format(
        brightest=before.brightest,
        channels=before.channels,
        height=before.height,
        width=before.width,
        prepare=prepare,
        verify=verify,
    )
