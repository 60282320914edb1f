"""Networks of repeated cells as pictures: the operations of a cell on what they take, and what they add up to.

From the cell's inputs down. A node is a bar below its operations; operations that are ``none`` are left out.
"""

import re
from collections.abc import Sequence
from html import escape

from nas_api.spaces.convolutional_cell import ConvolutionalCellArchitecture, ConvolutionalCellNode, Operation

# A box is an operation, a bar the sum of those above it.
_BOX_WIDTH, _BOX_HEIGHT, _BAR_HEIGHT, _GAP, _ROW = 92.0, 20.0, 17.0, 8.0, 82.0
_COLUMN = _BOX_WIDTH + _GAP

Edges = tuple[tuple[int, Operation], ...]
"""What a node takes, and by which operation."""


def cells_picture(architecture: ConvolutionalCellArchitecture) -> str:
    """Return an architecture as HTML: its cell or cells, and how the network is made of them."""
    filters = [architecture.filters * 2**stage for stage in range(architecture.stages)]
    numbers = " and ".join(filter(None, (", ".join(map(str, filters[:-1])), str(filters[-1]))))
    cells = "1 cell" if architecture.cells_per_stage == 1 else f"{architecture.cells_per_stage} cells"
    words = f"{architecture.stages} stages of {cells}" if architecture.stages > 1 else f"1 stage of {cells}"
    words += f" with {numbers} filters"
    if architecture.reduction:
        words += ", reduction cells in between"
    elif architecture.stages > 1:
        words += ", residual blocks of stride 2 in between"
    picture = _cell(architecture, architecture.normal, "normal cell" if architecture.reduction else "cell")
    if architecture.reduction:
        picture += _cell(architecture, architecture.reduction, "reduction cell")
    return f'{picture}<p class="key">{words}</p>'


def _cell(architecture: ConvolutionalCellArchitecture, nodes: tuple[ConvolutionalCellNode, ...], name: str) -> str:
    inputs, outputs = architecture.cell_inputs, architecture.outputs(nodes)
    # What each value adds up: nothing, where it is an input.
    edges: list[Edges] = [()] * inputs + [_drawn(node) for node in nodes]
    width, middles, bottoms = _layout(edges, inputs)
    links, shapes = [], []
    for index, (middle, bottom) in enumerate(zip(middles, bottoms, strict=True)):
        if index < inputs:
            shapes.append(_bar(middle, bottom, _BOX_WIDTH, "a cell's input", _input_name(index, inputs)))
            continue
        left, wide = middle - _wide(edges[index]) / 2, _wide(edges[index]) - _GAP
        shapes.append(_bar(middle, bottom, wide, f"node {index}", f"{index}{'' if edges[index] else ': zeros'}"))
        for place, (source, operation) in enumerate(edges[index]):
            x, top = left + _COLUMN * (place + 0.5), bottom - _BAR_HEIGHT - 12 - _BOX_HEIGHT
            links.append(_link(middles[source], bottoms[source], x, top, f"{source} to {index}: {operation}"))
            links.append(_link(x, top + _BOX_HEIGHT, x, bottom - _BAR_HEIGHT, f"into node {index}"))
            shapes.append(_box(x, top, operation, f"{operation} of {source}, into node {index}"))
    end = max(bottoms) + 30 + _BAR_HEIGHT
    for index in outputs:
        links.append(_link(middles[index], bottoms[index], width / 2, end - _BAR_HEIGHT, f"{index} to the output"))
    words = "output" if len(outputs) == 1 else "concatenated"
    shapes.append(_bar(width / 2, end, _BOX_WIDTH, "the cell's output", words))
    label = f"{name}: {'+'.join(node.short() for node in nodes)}"
    heading = f'<p class="key">{name}</p>' if architecture.reduction else ""
    return (
        f'{heading}<div class="scroll"><svg class="net cell" role="img" aria-label="{escape(label)}"'
        f' viewBox="0 0 {width:.0f} {end + 3:.0f}"'
        f' style="max-width:{width * 1.1:.0f}px;min-width:{min(width, 380):.0f}px">'
        f"<title>{escape(label)}</title>{''.join(links)}{''.join(shapes)}</svg></div>"
    )


def _layout(edges: Sequence[Edges], inputs: int) -> tuple[float, list[float], list[float]]:
    """Return the picture's width, and for each value the middle and the bottom of its bar.

    A node stands one row below the lowest of those that it takes.
    """
    levels: list[int] = []
    for index, taken in enumerate(edges):
        levels.append(0 if index < inputs else 1 + max((levels[source] for source, _ in taken), default=0))
    rows = [[index for index, level in enumerate(levels) if level == row] for row in range(max(levels) + 1)]
    width = max(sum(_wide(edges[index]) for index in row) for row in rows) + 2 * _GAP
    middles = [0.0] * len(edges)
    for row in rows:
        left = (width - sum(_wide(edges[index]) for index in row)) / 2
        for index in row:
            middles[index] = left + _wide(edges[index]) / 2
            left += _wide(edges[index])
    return width, middles, [_BAR_HEIGHT + 2 + _ROW * level for level in levels]


def _wide(edges: Edges) -> float:
    """Return how wide a node is, with the room beside it."""
    return _COLUMN * max(1, len(edges))


def _drawn(node: ConvolutionalCellNode) -> Edges:
    """Return what a node takes and by which operation, without what is nothing."""
    return tuple(edge for edge in zip(node.inputs, node.operations, strict=True) if edge[1] != "none")


def _input_name(index: int, inputs: int) -> str:
    return "input" if inputs == 1 else ("last but one", "last cell")[index]


def _bar(middle: float, bottom: float, width: float, title: str, words: str) -> str:
    return (
        f'<g class="node"><title>{escape(title)}</title><rect class="terminal" x="{middle - width / 2:.1f}"'
        f' y="{bottom - _BAR_HEIGHT:.1f}" width="{width:.1f}" height="{_BAR_HEIGHT}" rx="8"/>'
        f'<text class="mid" x="{middle:.1f}" y="{bottom - 4.5:.1f}">{escape(words)}</text></g>'
    )


def _box(middle: float, top: float, operation: Operation, title: str) -> str:
    place = f'x="{middle - _BOX_WIDTH / 2:.1f}" y="{top:.1f}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="4"'
    # Those with weights are shaded.
    shade = f'<rect class="fill" {place}/>' if "conv" in operation else ""
    words = re.sub(r"(\d)x(\d)", r"\1×\2", operation).replace("_", " ")
    return (
        f'<g class="node"><title>{escape(title)}</title><rect class="box" {place}/>{shade}'
        f'<text class="mid" x="{middle:.1f}" y="{top + 14:.1f}">{words}</text></g>'
    )


def _link(x: float, begin: float, to_x: float, end: float, words: str) -> str:
    """Return a line that first goes to where it ends, then down, so that it passes by the nodes in between."""
    near, far = begin + 20, (begin + end) / 2
    return (
        f'<path class="link" d="M{x:.1f} {begin:.1f}C{x:.1f} {near:.1f} {to_x:.1f} {min(near, far):.1f}'
        f' {to_x:.1f} {end:.1f}"><title>{escape(words)}</title></path>'
    )
