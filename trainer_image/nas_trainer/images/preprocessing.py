"""What is done to images before a network sees them (paper section 4.1): whitening, upsampling, crops and flips."""

import torch
from torch import Tensor
from torch.nn import functional

UPSAMPLED_BY = 8
"""Pixels that an image gains in height and width before it is cropped; the paper does not say how many."""


def whiten(images: Tensor) -> Tensor:
    """Give each of some images (n, channels, height, width) mean 0 and deviation 1, in place; return them.

    One that is all of one colour becomes 0.
    """
    images -= images.mean((1, 2, 3), keepdim=True)
    # Pixels are whole numbers: a smaller deviation than this is that of one pixel that differs a little.
    images /= images.std((1, 2, 3), keepdim=True, correction=0).clamp_min(images[0].numel() ** -0.5)
    return images


def augment(images: Tensor, generator: torch.Generator, share: slice = slice(None), batch: int | None = None) -> Tensor:
    """Return images (n, c, h, w), each upsampled, cropped at random to its old size, and flipped or not.

    The paper's section 4.1. Upsampling is bilinear.

    Args:
        images: all of a batch, or a part of it.
        generator: draws as much as for all of it, so that parts fare as they do in the whole.
        share: which of the batch these are.
        batch: how many images it has; None: as many as there are.
    """
    count, device = len(images) if batch is None else batch, images.device
    top, left = torch.randint(0, UPSAMPLED_BY + 1, (2, count, 1), generator=generator, device=device)
    flip = torch.rand(count, 1, generator=generator, device=device) < 0.5
    return _crops(images, top[share], left[share], flip[share])


def central_crops(images: Tensor) -> Tensor:
    """Return images (n, c, h, w) as the network sees them outside of training: upsampled, then cropped to the middle.

    Their scale is that of the training images.
    """
    middle = torch.full((len(images), 1), UPSAMPLED_BY // 2, device=images.device)
    return _crops(images, middle, middle, torch.zeros_like(middle, dtype=torch.bool))


def _crops(images: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Upsample, crop at (top, left), both (n, 1) in pixels of the larger image, and flip, in one operation."""
    count, _, height, width = images.shape
    rows = top + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left + torch.where(flip, columns.flip(0), columns)
    # Centres of pixels in coordinates where the image's edges are at -1 and 1, in each of both sizes.
    y = (2 * rows + 1).float() / (height + UPSAMPLED_BY) - 1
    x = (2 * columns + 1).float() / (width + UPSAMPLED_BY) - 1
    shape = (count, height, width)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], 3)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
