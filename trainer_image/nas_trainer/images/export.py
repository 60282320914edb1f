"""A trained network as an ONNX model that takes images as they are stored and does all that comes before it itself."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_api.handover import Preprocessing
from nas_trainer.export import BATCHES, onnx_of
from nas_trainer.images.preprocessing import whiten


def onnx_model(network: nn.Module, before: Preprocessing, *, compared: bool = True) -> tuple[bytes, float]:
    """Return a model that takes ``pixels`` (batch, c, h, w) as stored and returns ``logits`` (batch, classes), and its
    largest difference from torch's outputs.

    Args:
        network: takes images as they are after the preprocessing; it is put into evaluation mode, on the CPU.
        before: the preprocessing.
        compared: see :func:`~nas_trainer.export.onnx_of`.

    Raises:
        ExportFailed: see :func:`~nas_trainer.export.onnx_of`.
    """
    shape = (before.channels, before.height, before.width)
    generator = torch.Generator().manual_seed(0)
    examples = [(before.brightest * torch.rand(batch, *shape, generator=generator),) for batch in BATCHES]
    return onnx_of(FromPixels(network, before).float(), examples, {"pixels": 0}, ("logits",), compared=compared)


class FromPixels(nn.Module):
    """A network with all that comes before it: from pixels (n, c, h, w) as they are stored to logits."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self._preprocessing = preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        """Whiten, resize and crop as the preprocessing says, then ask the network."""
        before = self._preprocessing
        if before.mean is None or before.deviation is None:
            images = whiten(pixels.clone())
        else:
            images = (pixels - before.mean) / before.deviation
        if before.resized:
            (height, width), edge = images.shape[2:], before.resized // 2
            size = (height + before.resized, width + before.resized)
            images = functional.interpolate(images, size, mode="bilinear", align_corners=False)
            images = images[:, :, edge : edge + height, edge : edge + width]
        logits: Tensor = self.network(images)
        return logits
