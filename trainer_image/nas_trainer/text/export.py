"""A trained language model as an ONNX model of one step: whoever runs it carries the state on from word to word."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_trainer.export import BATCHES, onnx_of
from nas_trainer.text.model import LanguageModel


def onnx_model(model: LanguageModel, *, compared: bool = True) -> tuple[bytes, float]:
    """Return a model that takes ``words`` (batch), ``states`` and ``memories`` (layers, batch, width), and returns
    ``logits`` (batch, words), ``newStates`` and ``newMemories``; and its largest difference from torch's outputs.

    Args:
        model: what has learnt.
        compared: see :func:`~nas_trainer.export.onnx_of`.

    Raises:
        ExportFailed: see :func:`~nas_trainer.export.onnx_of`.
    """
    generator = torch.Generator().manual_seed(0)
    count, width = len(model.cells), model.width
    examples = [
        (
            torch.randint(len(model.bias), (batch,), generator=generator),
            *torch.rand(2, count, batch, width, generator=generator).unbind(0),
        )
        for batch in BATCHES
    ]
    inputs = {"words": 0, "states": 1, "memories": 1}
    outputs = ("logits", "newStates", "newMemories")
    return onnx_of(OneStep(model), examples, inputs, outputs, compared=compared)


class OneStep(nn.Module):
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
