"""A recurrent cell as a readable Python module that needs only torch.

It has the cell, written out node by node, the language model around it, and the way from a text to numbers and to its
perplexity. The parameters' names and shapes are those of ``nas_trainer.text.model``, so that its weights load;
``Network.of(weights)`` takes the sizes from them.
"""

from nas_api.spaces.recurrent_cell import Activation, CellNode, Combination, RecurrentCellArchitecture

_COMBINED: dict[Combination, str] = {
    "add": "{} + {}",
    "elem_mult": "{} * {}",
    "max": "torch.maximum({}, {})",
}
_ACTIVATED: dict[Activation, str] = {
    "identity": "{}",
    "tanh": "torch.tanh({})",
    "sigmoid": "torch.sigmoid({})",
    "relu": "torch.relu({})",
    "sin": "torch.sin({})",
}

_TEMPLATE = '''\
"""{short}

With the weights and the vocabulary (vocabulary.json, as json.load returns it) that a final training leaves:
perplexity(Network.of(weights), numbers(text, vocabulary)).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Cell(nn.Module):
    """One step of the recurrent cell. Weights have a block of columns for each leaf."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input_weight = nn.Parameter(torch.empty(inputs, {base} * hidden))
        self.state_weight = nn.Parameter(torch.empty(hidden, {base} * hidden))
        self.bias = nn.Parameter(torch.empty({base} * hidden))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Take x (batch, inputs), h and c (batch, hidden); return the new h and c."""
        {inputs} = (x @ self.input_weight + self.bias).chunk({base}, 1)
        {states} = (h @ self.state_weight).chunk({base}, 1)
{lines}
        return a{root}, new_c


class Network(nn.Module):
    """A language model: embedding, cells one upon another, softmax."""

    def __init__(self, words: int, width: int, layers: int = 2, shared_embeddings: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(words, width).uniform_(-(width**-0.5), width**-0.5))
        self.cells = nn.ModuleList([Cell(width, width) for _ in range(layers)])
        self.decoder = None if shared_embeddings else nn.Parameter(self.embedding.detach().clone())
        self.bias = nn.Parameter(torch.zeros(words))

    @classmethod
    def of(cls, weights: dict[str, Tensor]) -> "Network":
        """Return the network that has these weights."""
        words, width = weights["embedding"].shape
        layers = sum(name.startswith("cells.") and name.endswith(".bias") for name in weights)
        network = cls(words, width, layers, "decoder" not in weights)
        network.load_state_dict(weights)
        return network

    def forward(
        self, words: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Take words (steps, batch) and the state, h and c of each layer (layers, batch, width); zeros when None.

        Returns logits (steps, batch, words) of what follows each word, and the new state.
        """
        if state is None:
            zeros = self.bias.new_zeros(len(self.cells), words.shape[1], self.embedding.shape[1])
            state = zeros, zeros
        h, c = (list(each) for each in state)
        logits = []
        for x in functional.embedding(words, self.embedding):
            for layer, cell in enumerate(self.cells):
                h[layer], c[layer] = cell(x, h[layer], c[layer])
                x = h[layer]
            logits.append(functional.linear(x, self.embedding if self.decoder is None else self.decoder, self.bias))
        return torch.stack(logits), (torch.stack(h), torch.stack(c))


def numbers(text: str, vocabulary: dict[str, Any]) -> Tensor:
    """Return a text as the numbers of its tokens, int64 (n,): each line's, and the end of the line."""
    place = {{token: number for number, token in enumerate(vocabulary["tokens"])}}
    unknown = place[vocabulary["unknown"]]
    tokens: list[str] = []
    for line in text.splitlines():
        tokens += line.split() if vocabulary["unit"] == "word" else line.strip()
        tokens.append(vocabulary["endOfLine"])
    return torch.tensor([place.get(token, unknown) for token in tokens])


@torch.no_grad()
def perplexity(network: Network, tokens: Tensor, streams: int = 1) -> float:
    """Return e to the mean loss of all tokens (n,), two at least, but the first, which is only read.

    The text is read as so many streams side by side, contiguous pieces that each start without a past: to repeat a
    test's figure, take as many as its batch had.
    """
    streams = min(streams, len(tokens) - 1)
    missing = -(len(tokens) - 1) % streams
    read = functional.pad(tokens[:-1], (0, missing)).view(streams, -1).t()
    following = functional.pad(tokens[1:], (0, missing), value=-100).view(streams, -1).t()
    total, state = torch.zeros((), dtype=torch.float64), None
    for words, targets in zip(read, following):
        logits, state = network(words[None], state)
        total += functional.cross_entropy(logits[0], targets, ignore_index=-100, reduction="sum")
    return float((total / (len(tokens) - 1)).exp())
'''


def _node_lines(cell: RecurrentCellArchitecture, index: int, left: str, right: str) -> list[str]:
    node = cell.nodes[index]
    before = _COMBINED[node.combination].format(left, right)
    lines = []
    if index == cell.cell_output:
        lines.append(f"new_c = {before}")
        before = "new_c"
    lines.append(f"a{index} = {_ACTIVATED[node.activation].format(before)}")
    if index == cell.injected:
        lines.append(f"a{index} = {_injection(cell.inject, index)}")
    return lines


def _injection(inject: CellNode, index: int) -> str:
    return _ACTIVATED[inject.activation].format(_COMBINED[inject.combination].format(f"a{index}", "c"))


def cell_source(cell: RecurrentCellArchitecture) -> str:
    """Return Python code of one module: class ``Cell``, one step, and class ``Network``, the language model."""
    lines: list[str] = []
    for index in range(len(cell.nodes)):
        if index < cell.base:
            lines += _node_lines(cell, index, f"w{index}", f"u{index}")
        else:
            lines += _node_lines(cell, index, *(f"a{child}" for child in cell.children(index)))
    columns = cell.columns()
    return _TEMPLATE.format(
        short=cell.short().replace("; ", ";\n"),
        base=cell.base,
        inputs=", ".join(f"w{leaf}" for leaf in columns),
        states=", ".join(f"u{leaf}" for leaf in columns),
        lines="\n".join(f"        {line}" for line in lines),
        root=len(cell.nodes) - 1,
    )
