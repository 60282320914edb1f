"""Cut scikit-learn's two sample photographs, china.jpg and flower.jpg, into patches: a dataset of real images.

    python examples/photos/cut.py /tmp/photos

It writes <part>/<photograph>/*.png, 24x24 pixels in colour. Parts come from regions of a photograph that do not
overlap: its left 60 % are for training, the next 20 % for validation, the rest for the test. Within a region patches
overlap by half.
"""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

SIDE = 24
STEP = SIDE // 2
ENDS = {"train": 0.6, "validation": 0.8, "test": 1.0}


def cut(folder: Path) -> None:
    """Write the patches into a folder."""
    photographs = load_sample_images()
    for path, pixels in zip(photographs.filenames, photographs.images, strict=True):
        photograph = Image.fromarray(pixels)
        begin = 0
        for part, share in ENDS.items():
            end = int(share * photograph.width)
            into = folder / part / Path(path).stem
            into.mkdir(parents=True, exist_ok=True)
            for top in range(0, photograph.height - SIDE + 1, STEP):
                for left in range(begin, end - SIDE + 1, STEP):
                    patch = photograph.crop((left, top, left + SIDE, top + SIDE))
                    patch.save(into / f"{top:03}-{left:03}.png")
            begin = end


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    cut(Path(sys.argv[1]))
