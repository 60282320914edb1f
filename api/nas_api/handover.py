"""What goes with a trained network so that others can feed it, and what is known of where it comes from.

Three JSON documents for programs without our code; each says its version. Weights without the first two are of no
use: nobody could compute the numbers that the network takes.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from nas_api.base import Model, is_none


class Vocabulary(Model):
    """``vocabulary.json``: from text to the numbers that a language model takes.

    Each line of the text is taken apart by ``unit`` and followed by ``endOfLine``; a token's number is its place in
    ``tokens``, and a token that is not there counts as ``unknown``.
    """

    version: Literal[1] = 1
    unit: Literal["word", "character"]
    """Words are what blanks separate; characters are those of a line without the blanks around it."""
    unknown: str
    """The token that stands for every other; it is among the tokens."""
    end_of_line: str
    """The token after each line; it is among the tokens."""
    tokens: tuple[str, ...]
    """All tokens, each at its number."""


class Preprocessing(Model):
    """``preprocessing.json``: from an image's pixels to what the network takes, and from its outputs to classes.

    In this order: whitening, resizing, cropping to the middle. The ONNX model does all of it itself.
    """

    version: Literal[1] = 1
    channels: int
    """Of an image; three are red, green and blue."""
    height: int
    """In pixels."""
    width: int
    """In pixels."""
    brightest: float
    """The value of a bright pixel; the darkest is 0."""
    mean: float | None = None
    """Subtracted from every pixel; None: each image's own mean."""
    deviation: float | None = None
    """Divides every pixel after that; None: each image's own standard deviation (of all pixels and channels, at least
    1 / sqrt(channels * height * width))."""
    resized: int = 0
    """Pixels that height and width gain by bilinear interpolation (corners not aligned), before the middle is cropped
    to the old size; 0: neither."""
    classes: tuple[str, ...]
    """Names of the classes in the order of the outputs; their numbers where the dataset names none."""


class Provenance(Model):
    """``provenance.json``: where the best architecture, and its weights if there are any, come from.

    It is written last: as long as its digest is another than the architecture's, the others are being replaced.
    """

    version: Literal[1] = 1
    experiment: str
    """Name of the experiment."""
    namespace: str
    uid: str
    """Of the experiment; its objects are below <prefix>/<namespace>/<experiment>/<uid>/."""
    sample: int
    """The search's sample whose architecture it is."""
    digest: str
    """SHA-256 of the architecture's canonical JSON."""
    metric_name: str
    """The objective's metric."""
    goal: Literal["Maximize", "Minimize"]
    reward: float
    """Of that sample in the search."""
    validation_metric: float
    """On the validation set: of the best final training (with several seeds the mean), of the search where there was
    none."""
    validation_spread: float | None = None
    """Standard deviation of that over the seeds; None where there was one."""
    test_metric: float | None = None
    """On the test set, by the very weights that lie here; None where none do."""
    test_sample: int | None = None
    """The training that left the weights: samples/<6 digits>/ has its result."""
    files: Annotated[dict[str, str] | None, Field(exclude_if=is_none)] = None
    """SHA-256 in hex of the files beside this one that it left, by name, as the search's log has them; None where the
    log has none."""
    trainer_image: str | None = None
    """What the manifest names; None: the image of the chart, or a local run."""
    images: dict[str, str] = {}
    """Digests of the images that trained and tested the weights and that searched, by the container (``trainer``,
    ``controller``), as their nodes name them; those that nobody knew any more are left out."""
    software: str
    """Version of the controller."""
    training: dict[str, Any] | None = None
    """All that the trainer was told for the weights, and the versions of its software; None where none of ours did."""
