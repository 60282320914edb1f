"""Training of one language model: a recurrent cell in layers, between an embedding and a softmax (paper section 4.2).

As in the literature (Zaremba et al., 2014) the text is laid out as streams side by side, which are read in windows;
the state is carried from window to window and starts at 0 with each epoch. Perplexity is e to the mean loss over all
tokens, bits per character are that loss over ln 2, each token counted once.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_api.child import FinalSettings, TrainerInput
from nas_api.experiment import LanguageSpec, OptimizerSpec, TextDataset
from nas_api.handover import Vocabulary
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_trainer.descent import Descent
from nas_trainer.images.training import choose_device
from nas_trainer.task import Progress, Unsuitable
from nas_trainer.text.cell import RecurrentCell
from nas_trainer.text.data import END, UNKNOWN, Text, load_text
from nas_trainer.text.operations import linear

PERPLEXITY = "perplexity"
BITS_PER_CHARACTER = "bitsPerCharacter"
_NO_TARGET = -100
# torch takes seeds of 64 bits.
_SEEDS = 2**63


def language_training(document: TrainerInput, load: Callable[..., Text] = load_text) -> "LanguageTraining":
    """Return the training that an input document with a text asks for.

    Args:
        document: what is asked for.
        load: :func:`~nas_trainer.text.data.load_text`, or what calls it once for several children.

    Raises:
        Unsuitable: the metric is not one of the text's, the architecture is no cell, or the budget of parameters is
            too small for any.
        DatasetUnavailable: see :func:`nas_trainer.text.data.load_text`.
        StoreUnreachable: the dataset's server does not answer.
    """
    spec = document.dataset.text or TextDataset()
    measured = (PERPLEXITY,) if spec.level == "word" else (PERPLEXITY, BITS_PER_CHARACTER)
    if document.metric not in measured:
        raise Unsuitable(
            f"a text of {spec.level}s is measured by {' or '.join(measured)}, not {document.metric!r}: correct"
            " spec.objective.metric"
        )
    if not isinstance(document.architecture, RecurrentCellArchitecture):
        raise Unsuitable(f"a {document.architecture.space} architecture cannot be trained on text")
    test = document.final is not None and document.final.test
    return LanguageTraining(
        document.architecture,
        load(spec, document.store, cache=document.dataset_cache, test=test),
        document.language,
        document.optimizer,
        document.batch_size,
        document.seed,
        choose_device(),
        metric=document.metric,
        final=document.final,
    )


def streams(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Lay a text out as streams side by side.

    Args:
        tokens: int64 (n,).
        count: how many streams; fewer when there are not so many tokens.

    Returns:
        What is read and what follows it, both (steps, streams), contiguous pieces of the text. Every token but the
        first follows exactly once; the end of the last streams is filled with what counts for nothing.
    """
    count = min(count, len(tokens) - 1)
    steps = math.ceil((len(tokens) - 1) / count)
    missing = steps * count - (len(tokens) - 1)
    read = functional.pad(tokens[:-1], (0, missing))
    following = functional.pad(tokens[1:], (0, missing), value=_NO_TARGET)
    return read.view(count, steps).t().contiguous(), following.view(count, steps).t().contiguous()


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


class _Step(nn.Module):
    """A language model that reads one word of each stream at a time."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: Tensor, states: Tensor, memories: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model = self.model
        x = model.embedding[words]
        new_states, new_memories = [], []
        for layer, cell in enumerate(model.layers()):
            x, memory = cell.step(x, states[layer], memories[layer])
            new_states.append(x)
            new_memories.append(memory)
        return functional.linear(x, model.softmax(), model.bias), torch.stack(new_states), torch.stack(new_memories)


class LanguageTraining(Descent[LanguageModel]):
    """One language model, its optimiser and how far they are: a :class:`~nas_trainer.task.Task`.

    Args:
        architecture: the cell.
        text: what is learnt, wherever it is; it is moved to the device.
        spec: the model's size and how it is trained.
        optimizer: Nesterov SGD's settings.
        streams_count: streams of text side by side: the batch.
        seed: decides the initial weights, and with the epoch's number what is dropped.
        device: where to train.
        metric: what the progress tells of: ``PERPLEXITY`` or ``BITS_PER_CHARACTER``.
        final: what only final trainings change: when the learning rate falls, and whether the text held out is the
            test text. None: nothing of it.
    """

    def __init__(
        self,
        architecture: RecurrentCellArchitecture,
        text: Text,
        spec: LanguageSpec,
        optimizer: OptimizerSpec,
        streams_count: int,
        seed: int,
        device: torch.device,
        *,
        metric: str = PERPLEXITY,
        final: FinalSettings | None = None,
    ) -> None:
        self._spec = spec
        self._seed = seed
        self._device = device
        self._metric = metric
        self._final = final or FinalSettings()
        self._train = tuple(each.to(device) for each in streams(text.train, streams_count))
        self._held_out = tuple(each.to(device) for each in streams(text.held_out, streams_count))
        self._vocabulary = Vocabulary(unit=text.unit, unknown=UNKNOWN, end_of_line=END, tokens=text.vocabulary)
        words = len(text.vocabulary)
        torch.manual_seed(seed % _SEEDS)
        network = LanguageModel(architecture, words, fitting_width(architecture, words, spec), spec).to(device)
        super().__init__(network, optimizer)

    def run(self, epochs: int, after_epoch: Callable[[], None]) -> None:
        """See :class:`~nas_trainer.task.Task`."""
        while self.progress.epochs < epochs and not self.progress.diverged:
            loss = self._train_epoch(self.progress.epochs)
            measured = () if self._final.test else (self._in_metric(self._measure()),)
            self.progress = Progress((*self.progress.metrics, *measured), (*self.progress.losses, loss))
            after_epoch()

    def metrics(self, last: int) -> dict[str, float]:
        """See :class:`~nas_trainer.task.Task`: the text's metrics, training loss in nats, and what a token costs."""
        metric = self._in_metric(self._measure()) if self._final.test else min(self.progress.metrics[-last:])
        nats = metric * math.log(2) if self._metric == BITS_PER_CHARACTER else math.log(metric)
        cells = sum(cell.input_weight.numel() + cell.state_weight.numel() for cell in self.network.layers())
        return {
            PERPLEXITY: _perplexity(nats),
            **({BITS_PER_CHARACTER: nats / math.log(2)} if self._metric == BITS_PER_CHARACTER else {}),
            self._metric: metric,
            "loss": self.progress.losses[-1],
            "parameters": float(self.parameters),
            "flops": float(cells + self.network.embedding.numel()),
        }

    def contract(self) -> Vocabulary:
        """See :class:`~nas_trainer.task.Task`."""
        return self._vocabulary

    def onnx(self) -> tuple[bytes, float]:
        """See :class:`~nas_trainer.task.Task`; one step: takes ``words`` (batch), ``states`` and ``memories``
        (layers, batch, width), and returns ``logits`` (batch, words), ``newStates`` and ``newMemories``."""
        from nas_trainer.export import onnx_of

        generator = torch.Generator().manual_seed(0)
        count, width = len(self.network.cells), self.network.width
        examples = [
            (
                torch.randint(len(self.network.bias), (batch,), generator=generator),
                *torch.rand(2, count, batch, width, generator=generator).unbind(0),
            )
            for batch in (1, 3)
        ]
        inputs = {"words": 0, "states": 1, "memories": 1}
        return onnx_of(_Step(self.network), examples, inputs, ("logits", "newStates", "newMemories"))

    def _in_metric(self, nats: float) -> float:
        return nats / math.log(2) if self._metric == BITS_PER_CHARACTER else _perplexity(nats)

    def _rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        falls = max(0, epoch + 1 - self._spec.steady_epochs)
        rate = self._learning_rate / float(self._spec.learning_rate_divisor) ** falls
        decay = self._final.decay_epoch
        return rate / 10 if decay is not None and epoch >= decay else rate

    def _train_epoch(self, epoch: int) -> float:
        """Read the training text once; return the mean loss of a token in nats."""
        read, following = self._train
        generator = torch.Generator(self._device).manual_seed((self._seed * 1_000_003 + epoch) % _SEEDS)
        self._optimizer.learning_rate = self._rate(epoch)
        clip = float(self._spec.gradient_clip)
        parameters = list(self.network.parameters())
        states, memories = self.network.start(read.shape[1])
        total = torch.zeros((), device=self._device)
        for start in range(0, len(read), self._spec.steps):
            window = slice(start, start + self._spec.steps)
            logits, states, memories = self.network(read[window], states.detach(), memories.detach(), generator)
            loss = functional.cross_entropy(
                logits, following[window].flatten(), ignore_index=_NO_TARGET, reduction="sum"
            )
            (loss / read.shape[1]).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, clip)
            self._optimizer.step()
            total += loss.detach()
        return (total / (following != _NO_TARGET).sum()).item()

    @torch.no_grad()
    def _measure(self) -> float:
        """Return the mean loss of a token of the text held out, in nats."""
        read, following = self._held_out
        states, memories = self.network.start(read.shape[1])
        total = torch.zeros((), device=self._device, dtype=torch.float64)
        for start in range(0, len(read), self._spec.steps):
            window = slice(start, start + self._spec.steps)
            logits, states, memories = self.network(read[window], states, memories)
            total += functional.cross_entropy(
                logits, following[window].flatten(), ignore_index=_NO_TARGET, reduction="sum"
            )
        return (total / (following != _NO_TARGET).sum()).item()


def _perplexity(nats: float) -> float:
    """Return e to the mean loss; infinity where that is too large for a number, as the diverged have it."""
    return math.exp(nats) if nats < 700 else math.inf if nats == nats else math.nan
