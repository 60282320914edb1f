"""The paper's controller: a 2-layer LSTM that emits one decision per step (sections 3.1 to 3.3).

Each kind of decision has its own softmax and its own embedding. What is fed to the next step is the
embedding of the option that was *sampled*. Skip connections are drawn at anchor points: with h the upper
layer's output at an anchor,

    P(layer j is an input of layer i) = sigmoid(v . tanh(W_prev h_j + W_curr h_i)),   j < i,

one Bernoulli draw each. The paper does not say what follows an anchor; here the next step gets the mean of
one learnt embedding per chosen layer, or a learnt "none" when no layer was chosen. That depends on the choices alone,
so that a whole sequence is evaluated by one LSTM call.

A decision that does not count (``nas_api.decisions.When``) takes its step like any other, so that shapes never depend
on choices; but it is answered with 0, adds nothing to the log-probability, the entropy or the gradient of its softmax,
and feeds the next step a vector of zeros.

All parameters are views of one flat vector, which makes the optimiser, snapshots and copies one tensor each.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_api.decisions import Anchor, Categorical, Choices, Decision, When
from nas_controller.policies.draws import Purpose, draw_count, uniforms

HIDDEN = 35
LAYERS = 2
SCALE = 0.08
MAX_ANCHORS = 64
"""A choice at an anchor is a mask in a signed 64-bit integer, so anchors are numbered 0 to 63."""


@dataclass(frozen=True)
class Layout:
    """Where the elementary draws of a sequence of decisions are.

    A softmax is one draw; anchor i is i Bernoulli draws, one for each earlier layer. Samples of one layout can be
    evaluated together.
    """

    decisions: tuple[Decision, ...]
    steps: dict[str, tuple[int, ...]]
    """Kind of decision to the steps that take it."""
    anchors: tuple[int, ...]
    """Step of each anchor."""
    conditions: tuple[tuple[int, When], ...]
    """Steps that may not count, and when they do."""


@lru_cache(maxsize=128)
def layout(decisions: tuple[Decision, ...]) -> Layout:
    """Return the layout of a sequence of decisions.

    Raises:
        ValueError: the anchors are not numbered 0, 1, 2, … or are more than a mask can hold.
    """
    steps: dict[str, list[int]] = {}
    anchors: list[int] = []
    conditions: list[tuple[int, When]] = []
    for step, decision in enumerate(decisions):
        if isinstance(decision, Anchor):
            if decision.index != len(anchors) or decision.index >= MAX_ANCHORS:
                raise ValueError(f"step {step}: anchor {decision.index} is not the next of {MAX_ANCHORS}")
            anchors.append(step)
        else:
            steps.setdefault(decision.kind, []).append(step)
            if decision.when is not None:
                conditions.append((step, decision.when))
    return Layout(decisions, {kind: tuple(at) for kind, at in steps.items()}, tuple(anchors), tuple(conditions))


@dataclass(frozen=True)
class Draw:
    """A batch of sampled sequences: choices by sample and step, and each sample's log-probability."""

    choices: list[Choices]
    log_probabilities: list[float]


@dataclass(frozen=True)
class Evaluation:
    """What the network thinks of given sequences; a column is an elementary draw, in no promised order.

    Both are of shape (samples, draws): the log-probability of what was chosen, in nats, and the entropy of the
    whole distribution it was chosen from; 0 where a decision does not count.
    """

    log_probabilities: Tensor
    entropies: Tensor
    counted: Tensor
    """Of shape (samples,): how many draws count."""

    def mean_entropies(self) -> list[float]:
        """Return the mean entropy of each sample's draws that count, in nats."""
        means: list[float] = (self.entropies.detach().sum(1) / self.counted.clamp(min=1)).tolist()
        return means


class Network:
    """The controller network over the decisions of one search space.

    Args:
        vocabulary: every kind of decision that will ever be asked for, with its number of options.
        seed: the initial weights follow from it and each weight's name.
        dtype: float32 in a search; tests use float64.
    """

    def __init__(self, vocabulary: dict[str, int], seed: int, dtype: torch.dtype = torch.float32) -> None:
        self._vocabulary = vocabulary
        shapes: dict[str, tuple[int, ...]] = {"start": (HIDDEN,)}
        for layer in range(LAYERS):
            shapes[f"lstm.{layer}.input"] = (4 * HIDDEN, HIDDEN)
            shapes[f"lstm.{layer}.hidden"] = (4 * HIDDEN, HIDDEN)
            shapes[f"lstm.{layer}.input_bias"] = (4 * HIDDEN,)
            shapes[f"lstm.{layer}.hidden_bias"] = (4 * HIDDEN,)
        for kind, options in sorted(vocabulary.items()):
            shapes[f"softmax.{kind}.weight"] = (HIDDEN, options)
            shapes[f"softmax.{kind}.bias"] = (options,)
            shapes[f"embedding.{kind}"] = (options, HIDDEN)
        shapes["anchor.previous"] = (HIDDEN, HIDDEN)
        shapes["anchor.current"] = (HIDDEN, HIDDEN)
        shapes["anchor.v"] = (HIDDEN,)
        shapes["anchor.embedding"] = (MAX_ANCHORS, HIDDEN)
        shapes["anchor.none"] = (HIDDEN,)
        self._shapes = shapes
        self._sizes = [int(np.prod(shape)) for shape in shapes.values()]
        drawn = [
            uniforms(seed, 0, Purpose.INITIALISE, _name_number(name), size)
            for name, size in zip(shapes, self._sizes, strict=True)
        ]
        flat = torch.from_numpy(np.concatenate(drawn) * (2 * SCALE) - SCALE).to(dtype)
        self.parameters: Tensor = flat.requires_grad_()
        """All weights, flat; the one leaf of the graph."""

    def at(self, parameters: Tensor) -> "Network":
        """Return the same network with other parameters: a vector like ``parameters``, which it does not copy."""
        other = copy(self)
        other.parameters = parameters
        return other

    def weights(self) -> dict[str, Tensor]:
        """Return the named weights, as views of ``parameters`` that gradients flow through."""
        parts = torch.split(self.parameters, self._sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    @torch.inference_mode()
    def sample(
        self, decisions: tuple[Decision, ...], numbers: NDArray[np.float64], temperatures: Sequence[float] | None = None
    ) -> Draw:
        """Draw one sequence for each row of numbers.

        Args:
            numbers: uniform in [0, 1), of shape (samples, draw_count(decisions)), used in the order of the decisions.
            temperatures: one for each row, 1 by default: what logits are divided by for the draw. Log-probabilities
                are the network's own, at temperature 1.
        """
        w = self.weights()
        # (draws, samples): a step's numbers are then contiguous.
        thresholds = torch.from_numpy(np.ascontiguousarray(numbers.T)).to(self.parameters.dtype)
        count = len(numbers)
        heat = None if temperatures is None else self.parameters.new_tensor(temperatures).unsqueeze(1)
        zeros = self.parameters.new_zeros(count, HIDDEN)
        hidden = [zeros] * LAYERS
        cell = [zeros] * LAYERS
        lstm = [_lstm_weights(w, layer) for layer in range(LAYERS)]
        softmaxes = {
            kind: (w[f"softmax.{kind}.bias"], w[f"softmax.{kind}.weight"], w[f"embedding.{kind}"])
            for kind in layout(decisions).steps
        }
        anchors = self.parameters.new_zeros(count, len(layout(decisions).anchors), HIDDEN)
        inputs = w["start"].expand(count, HIDDEN)
        taken: list[Tensor] = []
        logs: list[Tensor] = []
        counts = _Counts()
        used = 0
        for step, decision in enumerate(decisions):
            state = inputs
            for layer in range(LAYERS):
                hidden[layer], cell[layer] = torch.lstm_cell(state, (hidden[layer], cell[layer]), *lstm[layer])
                state = hidden[layer]
            if isinstance(decision, Anchor):
                index = decision.index
                anchors[:, index] = state @ w["anchor.previous"]
                if index == 0:
                    taken.append(zeros.new_zeros(count, 0))
                    inputs = w["anchor.none"].expand(count, HIDDEN)
                    continue
                current = (state @ w["anchor.current"]).unsqueeze(1)
                scores = torch.tanh(anchors[:, :index] + current) @ w["anchor.v"]
                bits = (
                    torch.sigmoid(scores if heat is None else scores / heat) > thresholds[used : used + index].T
                ).to(scores.dtype)
                logs.append(torch.nn.functional.logsigmoid(scores * (2 * bits - 1)).sum(1))
                taken.append(bits)
                inputs = _after_anchor(w, bits, index)
                used += index
            else:
                bias, weight, embedding = softmaxes[decision.kind]
                log_p = torch.log_softmax(torch.addmm(bias, state, weight), 1)
                p = log_p.exp() if heat is None else torch.softmax(log_p / heat, 1)
                below = p.cumsum(1) <= thresholds[used].unsqueeze(1)
                # Rounding may leave the last bound under 1.
                choice = below.sum(1).clamp_(max=len(decision.options) - 1)
                log = log_p.gather(1, choice.unsqueeze(1)).squeeze(1)
                inputs = embedding[choice]
                if decision.when is not None:
                    count_it = counts.of(step, decision.when, taken[decision.when.step])
                    choice = choice * count_it
                    log = log * count_it
                    inputs = inputs * count_it.unsqueeze(1)
                logs.append(log)
                taken.append(choice)
                used += 1
        columns = [
            _masks(chosen) if isinstance(decision, Anchor) else chosen.tolist()
            for decision, chosen in zip(decisions, taken, strict=True)
        ]
        totals = torch.stack(logs, 1).double().sum(1) if logs else torch.zeros(count)
        return Draw(list(zip(*columns, strict=True)), totals.tolist())

    def evaluate(self, decisions: tuple[Decision, ...], choices: Sequence[Choices]) -> Evaluation:
        """Evaluate given sequences of the same decisions, each step fed with what was chosen before it.

        Returns:
            Tensors through which gradients flow to ``parameters``.
        """
        w = self.weights()
        plan = layout(decisions)
        table = torch.tensor(choices, dtype=torch.int64)
        count = len(choices)
        counted = self._counted(table, plan)
        # What each step is fed with, kind by kind, then put in order.
        fed = [w["start"].expand(count, 1, HIDDEN)]
        order = [0]
        for kind, steps in plan.steps.items():
            embedded = w[f"embedding.{kind}"][table[:, steps]]
            fed.append(embedded if counted is None else embedded * counted[:, steps].unsqueeze(2))
            order += [step + 1 for step in steps]
        bits = self._bits(table, plan)
        if plan.anchors:
            fed.append(_after_anchors(w, bits))
            order += [step + 1 for step in plan.anchors]
        place = torch.tensor(order).argsort()[:-1]  # nothing follows the last decision
        inputs = torch.cat(fed, 1).index_select(1, place)
        outputs = self._lstm(w, inputs)

        log_probabilities: list[Tensor] = []
        entropies: list[Tensor] = []
        for kind, steps in plan.steps.items():
            logits = outputs[:, steps] @ w[f"softmax.{kind}.weight"] + w[f"softmax.{kind}.bias"]
            log_p = torch.log_softmax(logits, 2)
            chosen = log_p.gather(2, table[:, steps].unsqueeze(2)).squeeze(2)
            entropy = -(log_p.exp() * log_p).sum(2)
            log_probabilities.append(chosen if counted is None else chosen * counted[:, steps])
            entropies.append(entropy if counted is None else entropy * counted[:, steps])
        if len(plan.anchors) > 1:
            states = outputs[:, plan.anchors]
            into, source = torch.tril_indices(len(plan.anchors), len(plan.anchors), offset=-1)
            previous = (states @ w["anchor.previous"]).index_select(1, source)
            current = (states @ w["anchor.current"]).index_select(1, into)
            scores = torch.tanh(previous + current) @ w["anchor.v"]
            on, off = torch.nn.functional.logsigmoid(scores), torch.nn.functional.logsigmoid(-scores)
            is_input = bits[:, into, source]
            log_probabilities.append(is_input * on + (1 - is_input) * off)
            entropies.append(-(on.exp() * on + off.exp() * off))
        number = inputs.new_full((count,), draw_count(decisions))
        if counted is not None:
            number = number - (1 - counted).sum(1)
        return Evaluation(torch.cat(log_probabilities, 1), torch.cat(entropies, 1), number)

    def _counted(self, table: Tensor, plan: Layout) -> Tensor | None:
        """Return (samples, steps): 1 where a decision counts and 0 elsewhere; None when all always do."""
        if not plan.conditions:
            return None
        out = self.parameters.new_ones(table.shape)
        counts = _Counts()
        for step, when in plan.conditions:
            out[:, step] = counts.of(step, when, table[:, when.step])
        return out

    def _bits(self, table: Tensor, plan: Layout) -> Tensor:
        """Return (samples, anchors, anchors): 1 where layer j (last axis) is an input of layer i."""
        masks = table[:, plan.anchors]
        shifts = torch.arange(len(plan.anchors))
        return (masks.unsqueeze(2) >> shifts & 1).to(self.parameters.dtype)

    def _lstm(self, w: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the upper layer's outputs (samples, steps, hidden) for inputs of that shape."""
        flat = [weight for layer in range(LAYERS) for weight in _lstm_weights(w, layer)]
        zeros = inputs.new_zeros(LAYERS, inputs.shape[0], HIDDEN)
        # Arguments: biases yes, layers, no dropout, training, one direction, batch first.
        outputs: Tensor = torch.lstm(inputs, (zeros, zeros), flat, True, LAYERS, 0.0, True, False, True)[0]
        return outputs


def vocabulary(decisions: tuple[Decision, ...]) -> dict[str, int]:
    """Return the number of options of each kind of decision.

    Raises:
        ValueError: two decisions of one kind differ in their number of options.
    """
    out: dict[str, int] = {}
    for decision in decisions:
        if isinstance(decision, Categorical):
            known = out.setdefault(decision.kind, len(decision.options))
            if known != len(decision.options):
                raise ValueError(
                    f"decisions of kind {decision.kind!r} have {known} and {len(decision.options)} options"
                )
    return out


class _Counts:
    """Works out, decision by decision in their order, in which samples conditional ones count."""

    def __init__(self) -> None:
        self._by_step: dict[int, Tensor] = {}
        self._by_when: dict[When, Tensor] = {}

    def of(self, step: int, when: When, chosen: Tensor) -> Tensor:
        """Return (samples,): whether decision ``step`` counts, given what was chosen at ``when.step``.

        The steps of a repeated decision share one answer.
        """
        answer = self._by_when.get(when)
        if answer is None:
            answer = torch.isin(chosen, torch.tensor(sorted(when.choices)))
            if when.step in self._by_step:
                answer = answer & self._by_step[when.step]
            self._by_when[when] = answer
        self._by_step[step] = answer
        return answer


def _name_number(name: str) -> int:
    """Return a number for a weight's name, so that its initial value depends on nothing else."""
    return int.from_bytes(name.encode(), "big")


def _lstm_weights(w: dict[str, Tensor], layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    name = f"lstm.{layer}"
    return w[f"{name}.input"], w[f"{name}.hidden"], w[f"{name}.input_bias"], w[f"{name}.hidden_bias"]


def _after_anchor(w: dict[str, Tensor], bits: Tensor, index: int) -> Tensor:
    """Return what follows anchor ``index``: (samples, hidden) of bits (samples, index)."""
    number = bits.sum(1, keepdim=True)
    mean = bits @ w["anchor.embedding"][:index] / number.clamp(min=1)
    return torch.where(number > 0, mean, w["anchor.none"])


def _after_anchors(w: dict[str, Tensor], bits: Tensor) -> Tensor:
    """Return what follows every anchor: (samples, anchors, hidden) of bits (samples, anchors, anchors)."""
    number = bits.sum(2, keepdim=True)
    mean = bits @ w["anchor.embedding"][: bits.shape[2]] / number.clamp(min=1)
    return torch.where(number > 0, mean, w["anchor.none"])


def _masks(bits: Tensor) -> list[int]:
    """Return each row of bits as an integer, bit j for column j."""
    shifts = torch.arange(bits.shape[1])
    return (bits.to(torch.int64) << shifts).sum(1).tolist() if bits.shape[1] else [0] * bits.shape[0]
