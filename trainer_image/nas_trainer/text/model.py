"""The language model made of a cell: an embedding, the cell in layers, a softmax (paper section 4.2); and its size."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_api.experiment import LanguageSpec
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_trainer.task import Unsuitable
from nas_trainer.text.cell import RecurrentCell
from nas_trainer.text.operations import linear


def model_parameters(architecture: RecurrentCellArchitecture, words: int, width: int, spec: LanguageSpec) -> int:
    """Return how many parameters a language model of that width has."""
    columns = architecture.base * width
    embeddings = words * width * (1 if spec.shared_embeddings else 2)
    return embeddings + words + spec.layers * (2 * width * columns + columns)


def fitting_width(architecture: RecurrentCellArchitecture, words: int, spec: LanguageSpec) -> int:
    """Return the largest width within the budget of parameters; a multiple of 8 from 64 on, as processors like it.

    Raises:
        Unsuitable: the budget allows none.
    """
    width = 0
    while model_parameters(architecture, words, width + 1, spec) <= spec.parameters:
        width += 1
    if width == 0:
        raise Unsuitable(
            f"trainer.language.parameters {spec.parameters:,} are too few for {words:,} words: raise it, or lower"
            " trainer.dataset.text.vocabulary"
        )
    return width - width % 8 if width >= 64 else width


class LanguageModel(nn.Module):
    """Words to what may follow them: embedding, cells one upon another, softmax."""

    def __init__(self, architecture: RecurrentCellArchitecture, words: int, width: int, spec: LanguageSpec) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.width = width
        self.embedding = nn.Parameter(torch.empty(words, width).uniform_(-bound, bound))
        self.cells = nn.ModuleList([RecurrentCell(architecture, width, width) for _ in range(spec.layers)])
        self.decoder = (
            None if spec.shared_embeddings else nn.Parameter(torch.empty(words, width).uniform_(-bound, bound))
        )
        self.bias = nn.Parameter(torch.zeros(words))
        self._dropout = float(spec.dropout)

    def layers(self) -> list[RecurrentCell]:
        """Return the cells from the embedding up."""
        return list(self.cells)  # type: ignore[arg-type]

    def softmax(self) -> Tensor:
        """Return the softmax's weights, (words, width)."""
        return self.embedding if self.decoder is None else self.decoder

    def start(self, streams: int) -> tuple[Tensor, Tensor]:
        """Return the state before a text: h and c of each layer, both zeros (layers, streams, width)."""
        zeros = self.bias.new_zeros(len(self.cells), streams, self.width)
        return zeros, zeros

    def forward(
        self, words: Tensor, states: Tensor, memories: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a window.

        Args:
            words: int64 (steps, streams).
            states: h of each layer before it, (layers, streams, width).
            memories: c likewise.
            generator: decides what is dropped, when training.

        Returns:
            Logits (steps * streams, words), and the new states and memories.
        """
        x = self._dropped(functional.embedding(words, self.embedding), generator)
        new_states, new_memories = [], []
        for cell, state, memory in zip(self.layers(), states, memories, strict=True):
            x, new_memory = cell(x, state, memory)
            new_states.append(x[-1])
            new_memories.append(new_memory)
            x = self._dropped(x, generator)
        logits = linear(x.flatten(0, 1), self.softmax(), self.bias)
        return logits, torch.stack(new_states), torch.stack(new_memories)

    def _dropped(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None or self._dropout == 0:
            return x
        kept = 1 - self._dropout
        return x * torch.empty_like(x).bernoulli_(kept, generator=generator).div_(kept)
