"""A search as one HTML page: read from its log, drawn with our own SVG, complete in itself.

``history`` makes plain rows of what the log's reader yields, ``analysis`` makes the numbers that are drawn, ``drawing``
and ``networks`` draw, ``panels`` says what stands in each figure, ``page`` puts them together, and ``writer`` keeps a
copy in the store.
"""

from nas_report.history import History, read
from nas_report.page import render

__all__ = ["History", "read", "render"]
