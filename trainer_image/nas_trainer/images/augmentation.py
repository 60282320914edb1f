"""What is done to training images by name: flips, crops and cutouts, drawn for a whole batch at once.

Images come with the mean of the training images as 0, so that 0 is the colour of what is painted over or lies beyond an
edge.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nas_api.experiment import Augmentation

CROPPED_BY = 8
"""A crop moves an image by up to its side divided by this, in whole pixels, at least one."""
CUT_OUT = 2
"""The side of what a cutout paints over is the image's divided by this; less at the edge of the image."""


def altered(
    images: Tensor, names: Sequence[Augmentation], generator: torch.Generator, share: slice, batch: int
) -> Tensor:
    """Return images (n, c, h, w), each changed at random.

    Args:
        images: a batch's share.
        names: what is done, in this order.
        generator: draws as much as for all of the batch, so that parts fare as they do in the whole.
        share: which of the batch these are.
        batch: how many images it has.
    """
    for name in names:
        images = _ALTERATIONS[name](images, generator, share, batch)
    return images


def _flip(images: Tensor, generator: torch.Generator, share: slice, batch: int) -> Tensor:
    mirrored = torch.rand(batch, generator=generator, device=images.device)[share] < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _crop(images: Tensor, generator: torch.Generator, share: slice, batch: int) -> Tensor:
    count, _, height, width = images.shape
    beyond = [max(1, size // CROPPED_BY) for size in (height, width)]
    top, left = (_whole(2 * each + 1, generator, share, batch, images.device) for each in beyond)
    padded = functional.pad(images, (beyond[1], beyond[1], beyond[0], beyond[0]))
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    # Indices beside a slice come first: (n, h, w, c).
    which = torch.arange(count, device=images.device)
    return padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(images: Tensor, generator: torch.Generator, share: slice, batch: int) -> Tensor:
    hidden = []
    for size in images.shape[2:]:
        side = max(1, size // CUT_OUT)
        # The middle is any pixel of the image.
        first = _whole(size, generator, share, batch, images.device) - side // 2
        place = torch.arange(size, device=images.device) - first[:, None]
        hidden.append((place >= 0) & (place < side))
    rows, columns = hidden
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _whole(below: int, generator: torch.Generator, share: slice, batch: int, device: torch.device) -> Tensor:
    return torch.randint(0, below, (batch,), generator=generator, device=device)[share]


_ALTERATIONS: dict[Augmentation, Callable[[Tensor, torch.Generator, slice, int], Tensor]] = {
    "Flip": _flip,
    "Crop": _crop,
    "Cutout": _cutout,
}
