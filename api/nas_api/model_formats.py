"""The trained network in the layouts of those who serve and register models, as files by their paths. Pure.

Both are written without the libraries that read them. What goes in and comes out is what the trainer promises of every
``network.onnx`` (docs/best-model.md), with the sizes that stand beside it in ``best/``. `nas export` writes them into a
folder, and a follower registers one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from nas_api import names
from nas_api.handover import Preprocessing, Provenance, Vocabulary

_TRITON_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}
# As in pyproject.toml's extra `run`; MLflow from the version on whose layout this is.
_REQUIREMENTS = ("mlflow>=3", "numpy>=2", "onnx>=1.19", "onnxruntime>=1.23")
_PYTHON = "3.11"


@dataclass(frozen=True)
class Tensor:
    """What an ONNX model takes or gives; -1 in its shape is the batch, which may have any size."""

    name: str
    dtype: str
    """As numpy names it."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """All that an ONNX model takes and gives."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @classmethod
    def of_images(cls, before: Preprocessing) -> "Signature":
        """Return that of a network for images."""
        pixels = Tensor("pixels", "float32", (-1, before.channels, before.height, before.width))
        return cls((pixels,), (Tensor("logits", "float32", (-1, len(before.classes))),))

    @classmethod
    def of_text(cls, vocabulary: Vocabulary, weights: bytes) -> "Signature":
        """Return that of one step of a language model.

        Args:
            vocabulary: its tokens.
            weights: ``weights.safetensors``, whose first 8 bytes say how long its table of names and shapes is.
        """
        table = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
        width = table["embedding"]["shape"][1]
        layers = sum(name.startswith("cells.") and name.endswith(".bias") for name in table)
        state = (layers, -1, width)
        inputs = (
            Tensor("words", "int64", (-1,)),
            Tensor("states", "float32", state),
            Tensor("memories", "float32", state),
        )
        outputs = (
            Tensor("logits", "float32", (-1, len(vocabulary.tokens))),
            Tensor("newStates", "float32", state),
            Tensor("newMemories", "float32", state),
        )
        return cls(inputs, outputs)


@dataclass(frozen=True)
class TrainedModel:
    """A trained network with all that its layouts say of it."""

    onnx: bytes
    """``network.onnx``."""
    signature: Signature
    provenance: Provenance
    fill: Mapping[str, float]
    """The value of all of an input in the example, by the input's name; 0 where there is none."""
    beside: Mapping[str, bytes]
    """What lies beside the model in every layout: how to feed it, and where it comes from."""

    @classmethod
    def of(cls, found: Mapping[str, bytes]) -> "TrainedModel | None":
        """Return what the files of ``best/`` are, by name; None where no final training has left a network.

        Raises:
            ValueError: a file is not what its name says.
        """
        if names.file(names.BEST_ONNX) not in found or names.file(names.BEST_PROVENANCE) not in found:
            return None
        if not {names.file(names.BEST_PREPROCESSING), names.file(names.BEST_VOCABULARY)} & found.keys():
            # A user's own trainer has left it, and only that knows what it takes.
            return None
        fill: dict[str, float] = {}
        if (preprocessing := found.get(names.file(names.BEST_PREPROCESSING))) is not None:
            before = Preprocessing.model_validate_json(preprocessing)
            signature, fill = Signature.of_images(before), {"pixels": before.brightest / 2}
        else:
            vocabulary = Vocabulary.model_validate_json(found[names.file(names.BEST_VOCABULARY)])
            signature = Signature.of_text(vocabulary, found[names.file(names.BEST_WEIGHTS)])
        return cls(
            onnx=found[names.file(names.BEST_ONNX)],
            signature=signature,
            provenance=Provenance.model_validate_json(found[names.file(names.BEST_PROVENANCE)], extra="ignore"),
            fill=fill,
            beside={each: found[each] for each in map(names.file, _BESIDE) if each in found},
        )


_BESIDE = (names.BEST_VOCABULARY, names.BEST_PREPROCESSING, names.BEST_PROVENANCE)


def kserve(name: str, model: TrainedModel) -> dict[str, bytes]:
    """Return a model repository with one model, as Triton loads it, by itself or behind KServe."""
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', "# The batch is among the dims.", "max_batch_size: 0"]
    for kind, tensors in (("input", model.signature.inputs), ("output", model.signature.outputs)):
        for each in tensors:
            dims = ", ".join(map(str, each.shape))
            lines.append(f'{kind} {{ name: "{each.name}" data_type: {_TRITON_TYPES[each.dtype]} dims: [ {dims} ] }}')
    return {
        f"{name}/config.pbtxt": ("\n".join(lines) + "\n").encode(),
        f"{name}/1/model.onnx": model.onnx,
        **{f"{name}/{each}": data for each, data in model.beside.items()},
    }


def mlflow(model: TrainedModel) -> dict[str, bytes]:
    """Return a folder that MLflow loads, with its flavours ``onnx`` and ``python_function``."""
    example = {each.name: _filled(each.shape, model.fill.get(each.name, 0)) for each in model.signature.inputs}
    environment = {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}
    document = {
        "flavors": {
            "onnx": {"data": "model.onnx", "code": None, "onnx_version": "1.19", "providers": ["CPUExecutionProvider"]},
            "python_function": {
                "data": "model.onnx",
                "env": environment,
                "loader_module": "mlflow.onnx",
                "python_version": _PYTHON,
            },
        },
        "metadata": model.provenance.model_dump(mode="json", by_alias=True, exclude={"version", "training"}),
        "saved_input_example_info": {"artifact_path": "input_example.json", "type": "ndarray"},
        "signature": {
            "inputs": json.dumps([_specification(each) for each in model.signature.inputs]),
            "outputs": json.dumps([_specification(each) for each in model.signature.outputs]),
            "params": None,
        },
    }
    packages = [f"python={_PYTHON}", "pip", {"pip": list(_REQUIREMENTS)}]
    return {
        "MLmodel": _yaml(document),
        "model.onnx": model.onnx,
        "input_example.json": json.dumps(example).encode(),
        "requirements.txt": ("\n".join(_REQUIREMENTS) + "\n").encode(),
        "conda.yaml": _yaml({"name": "nas", "channels": ["conda-forge"], "dependencies": packages}),
        "python_env.yaml": _yaml({"python": _PYTHON, "dependencies": ["-r requirements.txt"]}),
        **model.beside,
    }


def _specification(tensor: Tensor) -> dict[str, Any]:
    shape = list(tensor.shape)
    return {"name": tensor.name, "type": "tensor", "tensor-spec": {"dtype": tensor.dtype, "shape": shape}}


def _filled(shape: tuple[int, ...], value: float) -> Any:
    """Return nested lists of one value, for a batch of one."""
    if not shape:
        return value
    return [_filled(shape[1:], value)] * max(1, shape[0])


def _yaml(document: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(document, sort_keys=False, width=1000).encode()
