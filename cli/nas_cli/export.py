"""``nas export``: the best network, handed over as a folder that needs nothing of ours.

What the controller and the final training left in the store is copied as it is; beside it comes a page that says how
to load it, with code that the tests run.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nas_api import names
from nas_api.architecture import ARCHITECTURE, Architecture
from nas_api.experiment import DatasetSpec, NASExperiment
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_cli.errors import Refusal
from nas_cli.experiment_store import reading
from nas_store import Store

README = "README.md"


@dataclass(frozen=True)
class HandedOver:
    """What was written."""

    files: tuple[str, ...]
    """Names in the folder, in the order they were written."""
    trained: bool
    """Whether the weights of a final training are among them."""


def hand_over(experiment: NASExperiment, store: Store, folder: Path) -> HandedOver:
    """Write the best network into a folder; files of an earlier export are replaced.

    Raises:
        Refusal: there is no best network yet, or the store or the folder cannot be used.
    """
    with reading(experiment):
        objects = {
            PurePosixPath(key).name: store.get(key)
            for key in (names.BEST_ARCHITECTURE, names.BEST_MODULE, names.BEST_WEIGHTS, names.BEST_ONNX)
        }
    found = {name: data for name, data in objects.items() if data is not None}
    document = found.get(_name(names.BEST_ARCHITECTURE))
    if document is None:
        name = experiment.metadata.name
        raise Refusal(f"{name} has no best network yet: `nas status {name}` tells how it is going")
    architecture = ARCHITECTURE.validate_json(document)
    found[README] = _page(experiment, architecture, found).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in found.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise Refusal(f"{folder} cannot be written ({error.strerror}): choose another with -o") from error
    return HandedOver(tuple(found), _name(names.BEST_WEIGHTS) in found)


def _name(key: str) -> str:
    return PurePosixPath(key).name


_MEANINGS = {
    _name(names.BEST_ARCHITECTURE): "the architecture: JSON with a version, as the search wrote it",
    _name(names.BEST_MODULE): "a Python module that builds the network; it needs only torch",
    _name(names.BEST_WEIGHTS): "the weights of the final training, by the module's names of parameters",
    _name(names.BEST_ONNX): "the trained network for onnxruntime and others",
}


_LOAD_IMAGES = """\
```python
import torch
{imports}from network import Network

network = Network()
{load}network.eval()
example = torch.randn(1, {channels}, {size}, {size})
with torch.no_grad():
    output = network(example)
```
"""

_ONNX_IMAGES = """\
Or with onnxruntime alone, to which `example` is a numpy array:

```python
import onnxruntime

session = onnxruntime.InferenceSession("network.onnx")
output = session.run(None, {session.get_inputs()[0].name: example.numpy()})[0]
```
"""

_MEANING_IMAGES = """\
Inputs are images (n, channels, height, width), whitened: each channel has mean 0 and deviation 1 over the training
images. Outputs are logits (n, classes).
"""

_LOAD_TEXT = """\
```python
import torch
{imports}from network import Network

network = {network}
network.eval()
example = torch.randint(len(network.bias), (5, 1))
with torch.no_grad():
    output, state = network(example)
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
for words in example.numpy():
    output, states, memories = session.run(None, {"words": words, "states": states, "memories": memories})
```
"""

_MEANING_TEXT = """\
Inputs are the numbers of words or characters, (steps, batch): 0 is <unk>, the others follow by falling frequency in the
training text, equally frequent ones by the alphabet. Outputs are the logits of what follows each, and the state, with
which the next piece of text goes on.
"""

_NO_WEIGHTS = """\
There are no weights: they come from `spec.finalTraining`, which the experiment does not have, or has not finished. The
module builds the network with fresh ones.
"""


def _page(experiment: NASExperiment, architecture: Architecture, found: dict[str, bytes]) -> str:
    """Return the folder's README."""
    metric, dataset = experiment.spec.objective.metric, experiment.spec.trainer.dataset
    data = next(iter(dataset.model_dump(by_alias=True, exclude_none=True)))
    trained = _name(names.BEST_WEIGHTS) in found
    table = "\n".join(f"| {name} | {meaning} |" for name, meaning in _MEANINGS.items() if name in found)
    parts = [
        f"# The best network of {experiment.metadata.name}\n",
        f"Found for {metric} on {data}; digest {architecture.digest}.\n",
        f"    {architecture.short()}\n",
        f"| file | what |\n|---|---|\n{table}\n",
    ]
    if _name(names.BEST_MODULE) not in found:
        return "\n".join([*parts, "Only the trainer that trained it knows how to build it.\n"])
    if not trained:
        parts.append(_NO_WEIGHTS)
    text = isinstance(architecture, RecurrentCellArchitecture)
    code = _text_code(experiment, trained) if text else _image_code(dataset, trained)
    parts += ["Run in this folder:\n", code]
    if _name(names.BEST_ONNX) in found:
        parts.append(_ONNX_TEXT if text else _ONNX_IMAGES)
    return "\n".join([*parts, _MEANING_TEXT if text else _MEANING_IMAGES])


_IMPORT_WEIGHTS = "from safetensors.torch import load_file\n"
_WEIGHTS = f'load_file("{_name(names.BEST_WEIGHTS)}")'


def _image_code(dataset: DatasetSpec, trained: bool) -> str:
    """Return code that makes a network and shows it an image."""
    channels, size = (1, 8) if dataset.digits is not None else (3, 32)
    return _LOAD_IMAGES.format(
        imports=_IMPORT_WEIGHTS if trained else "",
        load=f"network.load_state_dict({_WEIGHTS})\n" if trained else "",
        channels=channels,
        size=size,
    )


def _text_code(experiment: NASExperiment, trained: bool) -> str:
    """Return code that makes a language model and shows it five words; the weights know how large it is."""
    language = experiment.spec.trainer.language
    fresh = f"Network(words=100, width=32, layers={language.layers}, shared_embeddings={language.shared_embeddings})"
    return _LOAD_TEXT.format(
        imports=_IMPORT_WEIGHTS if trained else "", network=f"Network.of({_WEIGHTS})" if trained else fresh
    )
