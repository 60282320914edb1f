"""Networks of repeated cells as pictures: the operations of a cell on what they take, and what they add up to.

From the cell's inputs down. A node is a bar below its operations; operations that are ``none`` are left out.
"""

import re
from html import escape

from nas_api.spaces.convolutional_cell import ConvolutionalCellArchitecture, ConvolutionalCellNode, Operation

# A box is an operation, a bar the sum of those above it.
_BOX_WIDTH, _BOX_HEIGHT, _BAR_HEIGHT, _GAP, _ROW = 92.0, 20.0, 17.0, 8.0, 82.0
_COLUMN = _BOX_WIDTH + _GAP


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
    drawn = [_drawn(node) for node in nodes]
    levels = [0] * inputs
    for edges in drawn:
        levels.append(1 + max((levels[source] for source, _ in edges), default=0))
    rows = [[index for index, level in enumerate(levels) if level == row] for row in range(max(levels) + 1)]
    widths = [_COLUMN] * inputs + [_COLUMN * max(1, len(edges)) for edges in drawn]
    width = max(sum(widths[index] for index in row) for row in rows) + 2 * _GAP
    middles: dict[int, float] = {}
    for row in rows:
        left = (width - sum(widths[index] for index in row)) / 2
        for index in row:
            middles[index] = left + widths[index] / 2
            left += widths[index]
    bottoms = [_BAR_HEIGHT + 2 + _ROW * level for level in levels]
    links, shapes = [], []
    for index, bottom in enumerate(bottoms):
        title = _input_name(index, inputs) if index < inputs else f"node {index}"
        bar = _COLUMN * (0.9 if index < inputs else max(1, len(drawn[index - inputs]))) - _GAP
        words = title if index < inputs else str(index) if drawn[index - inputs] else f"{index}: zeros"
        shapes.append(_bar(middles[index], bottom, bar, title, words))
        for place, (source, operation) in enumerate(drawn[index - inputs] if index >= inputs else ()):
            x = middles[index] - widths[index] / 2 + _COLUMN * (place + 0.5)
            top = bottom - _BAR_HEIGHT - 12 - _BOX_HEIGHT
            links.append(_link(middles[source], bottoms[source], x, top, f"{source} to {index}: {operation}"))
            links.append(_link(x, top + _BOX_HEIGHT, x, bottom - _BAR_HEIGHT, ""))
            shapes.append(_box(x, top, operation, f"{operation} of {source}, into node {index}"))
    end = max(bottoms) + 30 + _BAR_HEIGHT
    links += [
        _link(middles[index], bottoms[index], width / 2, end - _BAR_HEIGHT, f"{index} to the output")
        for index in outputs
    ]
    shapes.append(
        _bar(width / 2, end, _COLUMN - _GAP, "the cell's output", "output" if len(outputs) == 1 else "concatenated")
    )
    label = f"{name}: {'+'.join(node.short() for node in nodes)}"
    heading = f'<p class="key">{name}</p>' if architecture.reduction else ""
    return (
        f'{heading}<div class="scroll"><svg class="net cell" role="img" aria-label="{escape(label)}"'
        f' viewBox="0 0 {width:.0f} {end + 3:.0f}"'
        f' style="max-width:{width * 1.1:.0f}px;min-width:{min(width, 380):.0f}px">'
        f"<title>{escape(label)}</title>{''.join(links)}{''.join(shapes)}</svg></div>"
    )


def _drawn(node: ConvolutionalCellNode) -> list[tuple[int, Operation]]:
    """Return what a node takes and by which operation, without what is nothing."""
    return [edge for edge in zip(node.inputs, node.operations, strict=True) if edge[1] != "none"]


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
    title = f"<title>{escape(words)}</title>" if words else ""
    near, far = begin + 20, (begin + end) / 2
    return (
        f'<path class="link" d="M{x:.1f} {begin:.1f}C{x:.1f} {near:.1f} {to_x:.1f} {min(near, far):.1f}'
        f' {to_x:.1f} {end:.1f}">{title}</path>'
    )
