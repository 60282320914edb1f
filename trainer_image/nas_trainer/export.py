"""A trained network as an ONNX model, compared with the original before anybody gets it.

The libraries for it are loaded here only: no child of a search pays for them.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from nas_trainer.task import ExportFailed

MAX_DIFFERENCE = 1e-4
"""Of any output, absolute."""
BATCHES = (1, 3)
"""Sizes of the examples that a model is compared with: a batch's size must not be baked into it."""


def onnx_of(
    network: nn.Module,
    examples: Sequence[tuple[Tensor, ...]],
    inputs: dict[str, int],
    outputs: tuple[str, ...],
    *,
    compared: bool = True,
) -> tuple[bytes, float]:
    """Return a network as an ONNX model with a batch of any size, and its largest difference from torch's outputs.

    Args:
        network: takes the inputs in their order; it is put into evaluation mode, on the CPU.
        examples: inputs to compare with, one for each of ``BATCHES``.
        inputs: what the model calls its inputs, and which of their dimensions is the batch.
        outputs: what the model calls its outputs.
        compared: whether the model is run to find the difference, which is 0 otherwise.

    Raises:
        ExportFailed: it cannot be converted or run, or differs by more than ``MAX_DIFFERENCE``.
    """
    network = network.cpu().eval()
    try:
        with warnings.catch_warnings():
            # They are about torch's own code.
            warnings.simplefilter("ignore")
            data = _converted(network, examples[-1], inputs, outputs)
            differences = [_difference(data, network, example, inputs) for example in examples if compared]
    # ImportError: an image without these libraries. The others are what the converter raises for a network that it
    # cannot take.
    except (ImportError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ExportFailed((str(error) or type(error).__name__).splitlines()[0]) from error
    largest = max(differences, default=0.0)
    if not largest <= MAX_DIFFERENCE:
        raise ExportFailed(f"its outputs differ from torch's by {largest:.2g}")
    return data, largest


def _converted(
    network: nn.Module, example: tuple[Tensor, ...], inputs: dict[str, int], outputs: tuple[str, ...]
) -> bytes:
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        network,
        example,
        dynamo=True,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=tuple({dimension: batch} for dimension in inputs.values()),
        verbose=False,
    )
    assert program is not None
    buffer = io.BytesIO()
    # Its annotation knows only paths; it takes what onnx.save does.
    program.save(buffer)  # type: ignore[arg-type]
    return buffer.getvalue()


@torch.no_grad()
def _difference(data: bytes, network: nn.Module, example: tuple[Tensor, ...], inputs: dict[str, int]) -> float:
    with runtime() as onnxruntime:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        found = session.run(None, {name: each.numpy() for name, each in zip(inputs, example, strict=True)})
    wanted = network(*example)
    wanted = (wanted,) if isinstance(wanted, Tensor) else wanted
    return max(float(np.abs(one - other.numpy()).max()) for one, other in zip(found, wanted, strict=True))


@contextmanager
def runtime() -> Iterator[ModuleType]:
    """Give ``onnxruntime`` to a block that runs a model with it.

    Raises:
        ExportFailed: it is not installed, or refuses the model.
    """
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as refusals
    except ImportError as error:
        raise ExportFailed("onnxruntime is not installed") from error
    try:
        yield onnxruntime
    # The runtime's errors have no base class of their own: those of a model that it does not understand or cannot run.
    except (
        refusals.Fail,
        refusals.InvalidArgument,
        refusals.InvalidGraph,
        refusals.InvalidProtobuf,
        refusals.NotImplemented,
        refusals.RuntimeException,
    ) as error:
        raise ExportFailed(f"onnxruntime refuses it: {str(error).splitlines()[0]}") from error
