"""Training of one language model: whole epochs, each a function of the state before it, the seed and its number.

As in the literature (Zaremba et al., 2014) the text is laid out as streams side by side, which are read in windows;
the state is carried from window to window and starts at 0 with each epoch. Perplexity is e to the mean loss over all
tokens, bits per character are that loss over ln 2, each token counted once.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from nas_api.child import FinalSettings, TrainerInput
from nas_api.experiment import GpuSpec, LanguageSpec, OptimizerSpec, TextDataset
from nas_api.handover import Vocabulary
from nas_api.spaces.recurrent_cell import RecurrentCellArchitecture
from nas_trainer.descent import Descent, choose_device, seed_weights
from nas_trainer.distributed import ALONE, Ranks
from nas_trainer.gpu import on_gpu
from nas_trainer.task import Unsuitable
from nas_trainer.text.data import END, UNKNOWN, Text, load_text
from nas_trainer.text.export import OneStep, onnx_model
from nas_trainer.text.model import LanguageModel, fitting_width

PERPLEXITY = "perplexity"
BITS_PER_CHARACTER = "bitsPerCharacter"
_NO_TARGET = -100


def text_training(
    document: TrainerInput, load: Callable[..., Text] = load_text, ranks: Ranks = ALONE
) -> "TextTraining":
    """Return the training that an input document with a text asks for.

    Args:
        document: what is asked for.
        load: :func:`~nas_trainer.text.data.load_text`, or what calls it once for several children.
        ranks: the processes that train it together.

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
    final = document.final or FinalSettings()
    return TextTraining(
        document.architecture,
        load(spec, document.store, cache=document.dataset_cache, test=final.test, on_validation=final.on_validation),
        document.language,
        document.optimizer,
        document.batch_size,
        document.seed,
        choose_device(),
        metric=document.metric,
        final=document.final,
        gpu=document.gpu,
        ranks=ranks,
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


class TextTraining(Descent[LanguageModel]):
    """One language model, its optimiser and how far they are: a :class:`~nas_trainer.task.Task`.

    Args:
        architecture: the cell.
        text: what is learnt, wherever it is; it is moved to the device.
        spec: the model's size and how it is trained.
        optimizer: which one, and its settings.
        streams_count: streams of text side by side: the batch.
        seed: decides the initial weights, and with the epoch's number what is dropped.
        device: where to train.
        metric: what the progress tells of: ``PERPLEXITY`` or ``BITS_PER_CHARACTER``.
        final: what only final trainings change: dropout, the scale of the initial weights, when the learning rate
            falls, and whether the text held out is the test text. None: nothing of it.
        gpu: how the device is used when it is a GPU; None: as the manifest's defaults say.
        ranks: the processes that train it together, each with its share of the streams.

    Raises:
        Unsuitable: there are fewer streams than ranks.
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
        gpu: GpuSpec | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._spec = spec
        self._metric = metric
        self._train = tuple(each.to(device) for each in streams(text.train, streams_count))
        self._held_out = tuple(each.to(device) for each in streams(text.held_out, streams_count))
        if self._train[0].shape[1] < ranks.count:
            raise Unsuitable(
                f"{ranks.count} pods cannot share {self._train[0].shape[1]} streams of text: lower finalTraining.pods,"
                " or raise trainer.batchSize"
            )
        self._vocabulary = Vocabulary(unit=text.unit, unknown=UNKNOWN, end_of_line=END, tokens=text.vocabulary)
        words = len(text.vocabulary)
        seed_weights(seed)
        if final is not None and final.dropout is not None:
            spec = spec.model_copy(update={"dropout": final.dropout})
        network = LanguageModel(architecture, words, fitting_width(architecture, words, spec), spec)
        if final is not None and final.initial_scale is not None:
            network.draw_weights(float(final.initial_scale))
        super().__init__(network.to(device), optimizer, seed, device, final, ranks, on_gpu(gpu or GpuSpec(), device))
        self._forward: Callable[..., tuple[Tensor, Tensor, Tensor]] = ranks.parallel(self.network)

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

    def onnx(self, *, compared: bool = True) -> tuple[bytes, float]:
        """See :class:`~nas_trainer.task.Task`; one step: takes ``words`` (batch), ``states`` and ``memories``
        (layers, batch, width), and returns ``logits`` (batch, words), ``newStates`` and ``newMemories``."""
        return onnx_model(self.network, compared=compared)

    def once(self, batch: int) -> Callable[[], object]:
        """See :class:`~nas_trainer.task.Task`; one step."""
        step = OneStep(self.network)
        words = torch.zeros(batch, dtype=torch.int64, device=self._device)
        states, memories = self.network.start(batch)

        @torch.no_grad()
        def work() -> object:
            return step(words, states, memories)

        return work

    def _epoch(self, epoch: int) -> list[float]:
        loss = self._train_epoch(epoch)
        return [loss] if self._final.test else [loss, self._in_metric(self._measure())]

    def _in_metric(self, nats: float) -> float:
        return nats / math.log(2) if self._metric == BITS_PER_CHARACTER else _perplexity(nats)

    def _rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        falls = max(0, epoch + 1 - self._spec.steady_epochs)
        return self._decayed(self._learning_rate / float(self._spec.learning_rate_divisor) ** falls, epoch)

    def _train_epoch(self, epoch: int) -> float:
        """Read the training text once; return the mean loss of a token in nats."""
        read, following = self._shares(self._train)
        generator = self._generator(epoch, self._ranks.number)
        take_step = self._at_rate(self._step, self._rate(epoch))
        states, memories = self.network.start(read.shape[1])
        total = torch.zeros((), device=self._device)
        for start in range(0, len(read), self._spec.steps):
            window = slice(start, start + self._spec.steps)
            words = read[window]
            # The last window may be shorter than what was recorded.
            take = take_step if len(words) == self._spec.steps else self._step
            masks = self.network.masks(words, generator)
            loss, states, memories = take(words, following[window], states, memories, *masks)
            total += loss
        return (self._ranks.sum(total) / (self._train[1] != _NO_TARGET).sum()).item()

    def _step(
        self, words: Tensor, following: Tensor, states: Tensor, memories: Tensor, *masks: Tensor
    ) -> tuple[Tensor, ...]:
        """Learn from a window; return the sum of its tokens' losses in nats, float32 (), and the new state."""
        with self._precision():
            logits, states, memories = self._forward(words, states, memories, masks)
        loss = functional.cross_entropy(logits, following.flatten(), ignore_index=_NO_TARGET, reduction="sum")
        # The mean over all streams, where the ranks' gradients are averaged.
        streams_count = self._train[0].shape[1]
        self._learn(loss / (streams_count / self._ranks.count), float(self._spec.gradient_clip))
        return loss.detach(), states.detach(), memories.detach()

    @torch.no_grad()
    def _measure(self) -> float:
        """Return the mean loss of a token of the text held out, in nats."""
        read, following = self._shares(self._held_out)
        states, memories = self.network.start(read.shape[1])
        total = torch.zeros((), device=self._device, dtype=torch.float64)
        for start in range(0, len(read), self._spec.steps):
            window = slice(start, start + self._spec.steps)
            with self._precision():
                logits, states, memories = self.network(read[window], states, memories)
            total += functional.cross_entropy(
                logits, following[window].flatten(), ignore_index=_NO_TARGET, reduction="sum"
            )
        return (self._ranks.sum(total) / (self._held_out[1] != _NO_TARGET).sum()).item()

    def _shares(self, text: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return this rank's streams of a text (steps, streams), which may be none."""
        share = self._ranks.share(text[0].shape[1])
        return tuple(each[:, share] for each in text)


def _perplexity(nats: float) -> float:
    """Return e to the mean loss; infinity where that is too large for a number, as the diverged have it."""
    return math.exp(nats) if nats < 700 else math.inf if nats == nats else math.nan
