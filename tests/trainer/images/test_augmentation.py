"""Augmentation by name: what becomes of an image, how it is drawn, and that ranks draw alike."""

import pytest
import torch
from torch.nn import functional

from nas_api.experiment import Augmentation
from nas_trainer.images.augmentation import altered

COUNT = 400


def drawn(
    images: torch.Tensor, *names: Augmentation, seed: int = 0, share: slice = slice(None), batch: int | None = None
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return altered(images[share], names, generator, share, batch or len(images))


def test_nothing_is_done_and_nothing_drawn_without_a_name() -> None:
    images, generator = torch.randn(3, 1, 4, 4), torch.Generator().manual_seed(0)
    assert altered(images, (), generator, slice(None), 3) is images
    assert torch.equal(torch.rand(1, generator=generator), torch.rand(1, generator=torch.Generator().manual_seed(0)))


def test_a_flip_mirrors_half_of_the_images() -> None:
    images = torch.randn(5 * COUNT, 3, 5, 7)
    out = drawn(images, "Flip")
    flipped = [torch.equal(each, image.flip(2)) for each, image in zip(out, images, strict=True)]
    assert all(each or torch.equal(found, image) for each, found, image in zip(flipped, out, images, strict=True))
    assert 900 < sum(flipped) < 1100


def test_a_crop_moves_an_image_and_fills_up_with_zeros() -> None:
    height, width = 16, 24
    images = torch.randn(COUNT, 2, height, width)
    out = drawn(images, "Crop")
    assert out.shape == images.shape
    found = set()
    for each, padded in zip(out, functional.pad(images, (3, 3, 2, 2)), strict=True):
        (place,) = [
            (top, left)
            for top in range(5)
            for left in range(7)
            if torch.equal(each, padded[:, top : top + height, left : left + width])
        ]
        found.add(place)
    assert found == {(top, left) for top in range(5) for left in range(7)}


def test_a_cutout_paints_a_square_with_the_mean() -> None:
    height, width = 8, 12
    out = drawn(torch.ones(COUNT, 3, height, width), "Cutout")
    areas = set()
    for each in out:
        assert torch.equal(each, each[:1].expand_as(each))
        rows, columns = (each[0] == 0).nonzero(as_tuple=True)
        top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        assert len(rows) == (bottom - top) * (right - left)  # a rectangle
        areas.add((int(bottom - top), int(right - left)))
    # Whole where its middle lies far enough from the edge, and never less than half of a side.
    assert (4, 6) in areas
    assert {rows for rows, _ in areas} == {2, 3, 4} and {columns for _, columns in areas} == {3, 4, 5, 6}


@pytest.mark.parametrize("names", [("Flip",), ("Crop",), ("Cutout",), ("Cutout", "Flip", "Crop")])
def test_shares_of_a_batch_fare_as_they_do_in_the_whole(names: tuple[Augmentation, ...]) -> None:
    images = torch.randn(7, 3, 8, 8)
    whole = drawn(images, *names)
    parts = [drawn(images, *names, share=share) for share in (slice(0, 3), slice(3, 7))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(drawn(images, *names, seed=1), whole)
