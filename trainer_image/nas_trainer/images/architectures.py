"""The architectures that are trained on images: which module builds each, and counts what it costs."""

from torch import nn

from nas_api.architecture import Architecture
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_api.spaces.convolutional_cell import ConvolutionalCellArchitecture
from nas_trainer.images import cells, network
from nas_trainer.task import Unsuitable

ImageArchitecture = ConvolutionalArchitecture | ConvolutionalCellArchitecture


def of_images(architecture: Architecture) -> ImageArchitecture:
    """Return an architecture of any space as one that takes images.

    Raises:
        Unsuitable: it takes none.
    """
    if not isinstance(architecture, ImageArchitecture):
        raise Unsuitable(f"a {architecture.space} architecture cannot be trained on images")
    return architecture


def build(architecture: ImageArchitecture, in_channels: int, classes: int, epsilon: float) -> nn.Module:
    """Return the network; see :class:`~nas_trainer.images.network.Network` for the arguments."""
    if isinstance(architecture, ConvolutionalArchitecture):
        return network.Network(architecture, in_channels, classes, epsilon)
    return cells.CellNetwork(architecture, in_channels, classes, epsilon)


def multiply_adds(architecture: ImageArchitecture, image: tuple[int, int, int], classes: int) -> int:
    """Return what an image costs; see :func:`nas_trainer.images.network.multiply_adds`."""
    if isinstance(architecture, ConvolutionalArchitecture):
        return network.multiply_adds(architecture, image, classes)
    return cells.multiply_adds(architecture, image, classes)
