"""Architectures as pictures: layers with their skip connections, cells, custom decisions as a table."""

from html import escape

from nas_api.architecture import Architecture
from nas_api.spaces.convolutional import ConvolutionalArchitecture, ConvolutionalLayer
from nas_api.spaces.convolutional_cell import ConvolutionalCellArchitecture
from nas_api.spaces.custom import CustomArchitecture
from nas_api.spaces.recurrent_cell import CellNode, RecurrentCellArchitecture
from nas_report.cell_pictures import cells_picture
from nas_report.drawing import table

_COMBINATIONS = {"add": "+", "elem_mult": "×", "max": "max"}


def picture(architecture: Architecture) -> str:
    """Return an architecture of any space as HTML."""
    match architecture:
        case ConvolutionalArchitecture():
            return _layers(architecture)
        case ConvolutionalCellArchitecture():
            return cells_picture(architecture)
        case RecurrentCellArchitecture():
            return _cell(architecture)
        case CustomArchitecture():
            return _choices(architecture)


# ---------------------------------------------------------------- layers

# Arcs that skip layers bulge to the right, those from the image and to the classifier to the left.
_LEFT, _RIGHT, _WIDTH = 58.0, 258.0, 384.0


def _layers(architecture: ConvolutionalArchitecture) -> str:
    layers = architecture.layers
    step = 32.0 if len(layers) <= 20 else 25.0
    tall = step - 9
    places = [step * (index + 1) + 14 for index in range(len(layers))]
    top, bottom = 14.0, step * (len(layers) + 1) + 14
    middle = (_LEFT + _RIGHT) / 2
    links, nodes = [], []
    for index, layer in enumerate(layers):
        y = places[index]
        sources: list[int | None] = [*layer.inputs] or [None]
        for source in sources:
            name = "image" if source is None else str(source)
            begin = top if source is None else places[source]
            near = index == 0 if source is None else source == index - 1
            if near:
                links.append(_straight(middle, begin + tall / 2, y - tall / 2, f"{name} to {index}"))
            elif source is None:
                links.append(_arc(_LEFT, begin, y, -1, len(layers), f"image to {index}", "end"))
            else:
                links.append(_arc(_RIGHT, begin, y, 1, len(layers), f"{name} to {index}", "skip"))
        nodes.append(_layer(index, layer, y, tall, max(each.filters for each in layers), _block_sign(architecture)))
    for leaf in architecture.leaves():
        words = f"{leaf} to the classifier"
        if leaf == len(layers) - 1:
            links.append(_straight(middle, places[leaf] + tall / 2, bottom - tall / 2, words))
        else:
            links.append(_arc(_LEFT, places[leaf], bottom, -1, len(layers), words, "end"))
    block = f", each a block of {architecture.block_layers} convolutions" if architecture.block_layers > 1 else ""
    if architecture.block_output == "All":
        block += " that hands on the outputs of all"
    label = f"{len(layers)} layers{block}: {architecture.short()}"
    height = bottom + 16
    return (
        f'<svg class="net" role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH:.0f} {height:.0f}"'
        f' style="max-width:{_WIDTH * 1.15:.0f}px"><title>{escape(label)}</title>{"".join(links)}'
        f"{_terminal('image', top, tall)}{''.join(nodes)}{_terminal('classifier', bottom, tall)}</svg>"
    )


def _block_sign(architecture: ConvolutionalArchitecture) -> str:
    """Return what stands behind a layer's filters: how many convolutions it is, and a plus where all are handed on."""
    if architecture.block_layers == 1:
        return ""
    return f" ×{architecture.block_layers}{'+' if architecture.block_output == 'All' else ''}"


def _layer(index: int, layer: ConvolutionalLayer, y: float, tall: float, most: int, block: str) -> str:
    wide = _RIGHT - _LEFT
    extra = []
    if (layer.stride_height, layer.stride_width) != (1, 1):
        extra.append(f"↓{layer.stride_height}×{layer.stride_width}")
    if layer.pool:
        extra.append("pool")
    words = [f"layer {index}: {layer.filter_height} x {layer.filter_width}, {layer.filters} filters"]
    if extra:
        words.append(f"stride {layer.stride_height} x {layer.stride_width}{', then pooling' if layer.pool else ''}")
    words.append(f"inputs: {', '.join(map(str, layer.inputs)) or 'the image'}")
    # The filter to scale: its shape is what one compares first.
    unit = min(2.4, (tall - 5) / 7)
    height, width = (min(unit * size, tall - 4) for size in (layer.filter_height, layer.filter_width))
    size = f"{layer.filter_height}×{layer.filter_width}"
    return (
        f'<g class="node"><title>{escape("; ".join(words))}</title>'
        f'<rect class="box" x="{_LEFT}" y="{y - tall / 2:.1f}" width="{wide:.0f}" height="{tall:.1f}" rx="4"/>'
        f'<rect class="fill" x="{_LEFT}" y="{y - tall / 2:.1f}" width="{wide * layer.filters / most:.1f}"'
        f' height="{tall:.1f}" rx="4"/>'
        f'<text class="index" x="{_LEFT + 8}" y="{y + 4:.1f}">{index}</text>'
        f'<rect class="filter" x="{_LEFT + 38 - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}"'
        f' height="{height:.1f}"/>'
        f'<text x="{_LEFT + 54}" y="{y + 4:.1f}">{size}</text>'
        f'<text x="{_LEFT + 88}" y="{y + 4:.1f}">{layer.filters}{block}</text>'
        f'<text class="extra" x="{_RIGHT - 6}" y="{y + 4:.1f}">{escape(" ".join(extra))}</text></g>'
    )


def _terminal(name: str, y: float, tall: float) -> str:
    return (
        f'<rect class="terminal" x="{_LEFT}" y="{y - tall / 2:.1f}" width="{_RIGHT - _LEFT:.0f}" height="{tall:.1f}"'
        f' rx="{tall / 2:.1f}"/><text class="mid" x="{(_LEFT + _RIGHT) / 2}" y="{y + 4:.1f}">{name}</text>'
    )


def _straight(x: float, begin: float, end: float, words: str) -> str:
    return (
        f'<path class="link" d="M{x} {begin:.1f}V{end - 4:.1f}"><title>{escape(words)}</title></path>'
        f'<path class="head" d="M{x - 3} {end - 4:.1f}h6l-3 4z"/>'
    )


def _arc(x: float, begin: float, end: float, side: int, layers: int, words: str, look: str) -> str:
    """Return an arc; the farther it reaches, the farther out it swings, so that none hides another."""
    room = _WIDTH - _RIGHT - 8 if side > 0 else _LEFT - 8
    reach = (end - begin) / (32.0 * (layers + 1))
    # A cubic curve swings out by three quarters of its handles.
    out = x + side * (8 + (room - 8) * reach**0.6) / 0.75
    tip = x + side * 5
    return (
        f'<path class="link {look}" d="M{x} {begin:.1f}C{out:.1f} {begin:.1f} {out:.1f} {end:.1f} {tip} {end:.1f}">'
        f'<title>{escape(words)}</title></path><path class="head {look}" d="M{tip} {end - 3:.1f}v6l{-5 * side} -3z"/>'
    )


# ---------------------------------------------------------------- cells

_NODE_WIDTH, _NODE_HEIGHT, _ROW, _COLUMN = 88.0, 26.0, 44.0, 114.0


def _cell(cell: RecurrentCellArchitecture) -> str:
    """Return the tree of a cell lying on its side: leaves to the left, the root, which is h_t, to the right."""
    base = cell.base
    depth = base.bit_length()
    margin = 56.0
    places: list[tuple[float, float]] = [(margin, 30 + _ROW * leaf) for leaf in range(base)]
    level = dict.fromkeys(range(base), 0)
    for index in range(base, len(cell.nodes)):
        left, right = 2 * (index - base), 2 * (index - base) + 1
        level[index] = level[left] + 1
        places.append((margin + _COLUMN * level[index], (places[left][1] + places[right][1]) / 2))
    width, height = margin + _COLUMN * (depth - 1) + _NODE_WIDTH + 44, 30 + _ROW * base
    links, nodes = [], []
    for index, node in enumerate(cell.nodes):
        x, y = places[index]
        if index >= base:
            for source in (2 * (index - base), 2 * (index - base) + 1):
                begin, start = places[source][0] + _NODE_WIDTH, places[source][1]
                half = (begin + x) / 2
                links.append(f'<path class="link" d="M{begin} {start}C{half} {start} {half} {y} {x} {y}"/>')
        else:
            links.append(f'<path class="link" d="M{x - 12} {y - 6}L{x} {y}L{x - 12} {y + 6}"/>')
        nodes.append(_cell_node(cell, index, node, x, y))
    x, y = places[-1]
    links.append(f'<path class="link" d="M{x + _NODE_WIDTH} {y}h18"/>')
    names = [f'<text class="signal" x="{x + _NODE_WIDTH + 22}" y="{y + 4}">{_state("h", "t")}</text>']
    names += [
        f'<text class="signal end" x="{margin - 16}" y="{places[leaf][1] + 4}">x<tspan class="sub" dy="3">t</tspan>'
        f'<tspan dy="-3">, </tspan>{_state("h", "t−1")}</text>'
        for leaf in range(base)
    ]
    label = f"a cell of {base} leaves: {cell.short()}"
    return (
        f'<div class="scroll"><svg class="net cell" role="img" aria-label="{escape(label)}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}"'
        f' style="max-width:{width * 1.1:.0f}px;min-width:{min(width, 380):.0f}px">'
        f"<title>{escape(label)}</title>{''.join(links)}{''.join(nodes)}{''.join(names)}</svg></div>"
        f'<p class="key"><span><i class="inject"></i>takes the old cell state c<sub>t−1</sub>:'
        f' {_words(cell.inject)}</span><span><i class="output"></i>gives the new one, c<sub>t</sub>, before its'
        " activation</span></p>"
    )


def _cell_node(cell: RecurrentCellArchitecture, index: int, node: CellNode, x: float, y: float) -> str:
    looks = ["box"]
    tags = []
    if index == cell.injected:
        looks.append("inject")
        inject = f"{_COMBINATIONS[cell.inject.combination]} "
        tags.append(f'<tspan class="inject">{inject}{_state("c", "t−1")}, {cell.inject.activation}</tspan>')
    if index == cell.cell_output:
        looks.append("output")
        tags.append(f'<tspan class="output">→ {_state("c", "t")}</tspan>')
    tag = f'<text class="tag" x="{x + _NODE_WIDTH / 2}" y="{y + _NODE_HEIGHT / 2 + 11}">{" ".join(tags)}</text>'
    return (
        f'<g class="node"><title>{escape(f"node {index}: {node.short()}")}</title>'
        f'<rect class="{" ".join(looks)}" x="{x}" y="{y - _NODE_HEIGHT / 2}" width="{_NODE_WIDTH}"'
        f' height="{_NODE_HEIGHT}" rx="13"/><text class="index" x="{x + 9}" y="{y + 4}">{index}</text>'
        f'<text class="mid" x="{x + _NODE_WIDTH / 2 + 8}" y="{y + 4}">{_words(node)}</text>{tag if tags else ""}</g>'
    )


def _words(node: CellNode) -> str:
    return escape(f"{_COMBINATIONS[node.combination]} {node.activation}")


def _state(name: str, time: str) -> str:
    return f'{name}<tspan class="sub" dy="3">{time}</tspan><tspan dy="-3">\u200b</tspan>'


# ---------------------------------------------------------------- custom


def _choices(architecture: CustomArchitecture) -> str:
    rows = [
        (name, ", ".join(map(str, value)) if isinstance(value, tuple) else str(value))
        for name, value in architecture.choices.items()
    ]
    return table(("decision", "value"), rows, words=frozenset({0, 1}))
