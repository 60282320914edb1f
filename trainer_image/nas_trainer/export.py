"""A trained network as an ONNX model, compared with the original before anybody gets it.

The libraries for it are loaded here only: no child of a search pays for them.
"""

import io
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from nas_trainer.task import ExportFailed

MAX_DIFFERENCE = 1e-4
"""Of any output, absolute."""
# Each with all of the others as a batch: a batch's size must not be baked in.
_BATCHES = (1, 3)


def onnx_model(network: nn.Module, shape: tuple[int, ...], input_name: str, output_name: str) -> tuple[bytes, float]:
    """Return a network as an ONNX model with a batch of any size, and its largest difference from torch's outputs.

    Args:
        network: takes one float32 tensor (batch, *shape) and returns one tensor; it is put into evaluation mode, on the
            CPU.
        shape: of one example.
        input_name: what the model calls its input.
        output_name: what the model calls its output.

    Raises:
        ExportFailed: it cannot be converted or run, or differs by more than ``MAX_DIFFERENCE``.
    """
    network = network.cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    examples = [torch.randn(batch, *shape, generator=generator) for batch in _BATCHES]
    try:
        with warnings.catch_warnings():
            # They are about torch's own code.
            warnings.simplefilter("ignore")
            data = _converted(network, examples[-1], input_name, output_name)
            differences = [_difference(data, network, example, input_name) for example in examples]
    # ImportError: an image without these libraries. The others are what the converter raises for a network that it
    # cannot take.
    except (ImportError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ExportFailed((str(error) or type(error).__name__).splitlines()[0]) from error
    if not max(differences) <= MAX_DIFFERENCE:
        raise ExportFailed(f"its outputs differ from torch's by {max(differences):.2g}")
    return data, max(differences)


def _converted(network: nn.Module, example: Tensor, input_name: str, output_name: str) -> bytes:
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        input_names=[input_name],
        output_names=[output_name],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    buffer = io.BytesIO()
    # Its annotation knows only paths; it takes what onnx.save does.
    program.save(buffer)  # type: ignore[arg-type]
    return buffer.getvalue()


@torch.no_grad()
def _difference(data: bytes, network: nn.Module, example: Tensor, input_name: str) -> float:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as refusals

    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        found = session.run(None, {input_name: example.numpy()})[0]
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
    return float(np.abs(found - network(example).numpy()).max())
