"""The language model made of a cell: an embedding, the cell in layers, a softmax (paper section 4.2); and its size."""

import math
from collections.abc import Sequence

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
        self._input_dropout = float(spec.input_dropout)
        self._recurrent_dropout = float(spec.recurrent_dropout)
        self._embedding_dropout = float(spec.embedding_dropout)

    def layers(self) -> list[RecurrentCell]:
        """Return the cells from the embedding up."""
        return list(self.cells)  # type: ignore[arg-type]

    def draw_weights(self, scale: float) -> None:
        """Draw all weights anew, uniformly between ``-scale`` and ``scale`` (Zaremba et al., 2014, section 4.1)."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -scale, scale)

    def softmax(self) -> Tensor:
        """Return the softmax's weights, (words, width)."""
        return self.embedding if self.decoder is None else self.decoder

    def start(self, streams: int) -> tuple[Tensor, Tensor]:
        """Return the state before a text: h and c of each layer, both zeros (layers, streams, width)."""
        zeros = self.bias.new_zeros(len(self.cells), streams, self.width)
        return zeros, zeros

    def masks(self, words: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw what is dropped in a window of training: zeros for that, and 1 / (1 - dropout) for what is kept.

        Apart from ``forward``, which can be recorded without the generator.

        Args:
            words: int64 (steps, streams).
            generator: decides what is dropped.

        Returns:
            The masks in the order in which ``forward`` takes them; none for what is never dropped.
        """
        streams, every = (words.shape[1], self.width), (*words.shape, self.width)
        layer = [(streams, self._input_dropout), (streams, self._recurrent_dropout), (every, self._dropout)]
        # Words are dropped as such, wherever they are in the window (Gal and Ghahramani, 2016, section 4.2).
        of_words = ((self.embedding.shape[0], 1), self._embedding_dropout)
        return tuple(
            self.bias.new_empty(shape).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)
            for shape, dropout in [of_words, (every, self._dropout), *layer * len(self.cells)]
            if dropout
        )

    def forward(
        self, words: Tensor, states: Tensor, memories: Tensor, masks: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a window.

        Args:
            words: int64 (steps, streams).
            states: h of each layer before it, (layers, streams, width).
            memories: c likewise.
            masks: what ``masks`` has drawn, when training; without, nothing is dropped.

        Returns:
            Logits (steps * streams, words), and the new states and memories.
        """
        drawn = iter(masks)

        def mask(dropout: float) -> Tensor | None:
            return next(drawn) if masks and dropout else None

        kept_words = mask(self._embedding_dropout)
        x = functional.embedding(words, self.embedding)
        x = _masked(x if kept_words is None else x * kept_words[words], mask(self._dropout))
        new_states, new_memories = [], []
        for cell, state, memory in zip(self.layers(), states, memories, strict=True):
            # One mask for all steps of the window.
            x = _masked(x, mask(self._input_dropout))
            x, new_memory = cell(x, state, memory, mask(self._recurrent_dropout))
            new_states.append(x[-1])
            new_memories.append(new_memory)
            x = _masked(x, mask(self._dropout))
        logits = linear(x.flatten(0, 1), self.softmax(), self.bias)
        return logits, torch.stack(new_states), torch.stack(new_memories)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask
