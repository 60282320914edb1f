#!/usr/bin/env python3
"""A trainer of your own in several pods: torchrun starts it in each, and DistributedDataParallel averages gradients.

Only the first process touches files: what the others need to know, they hear from it, so that all begin with the same.
Started alone, as by `nas run`, it is a plain training of one process.
"""

import io
import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

POINTS = 512
FOLDER = Path(os.environ["NAS_DIR"])


def spirals(seed: int) -> tuple[Tensor, Tensor]:
    """Return points of two spirals, float32 (POINTS, 2), and to which of them each belongs."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(POINTS) % 2
    angle = 6 * torch.rand(POINTS, generator=generator).sqrt()
    turned = angle + torch.pi * labels
    points = torch.stack([angle * turned.cos(), angle * turned.sin()], 1) / 6
    return points + 0.03 * torch.randn(POINTS, 2, generator=generator), labels


def network(choices: dict) -> nn.Module:
    """Return a perceptron as the search wants it."""
    layers, width = [], 2
    for _ in range(choices["depth"]):
        layers += [nn.Linear(width, choices["width"]), nn.Tanh()]
        width = choices["width"]
    return nn.Sequential(*layers, nn.Linear(width, 2))


def checkpoint(first: bool) -> dict:
    """Return what the first process finds of an earlier attempt; empty if there is nothing."""
    found = [{}]
    path = FOLDER / "checkpoint"
    if first and path.exists():
        found = [torch.load(path, weights_only=True)]
    dist.broadcast_object_list(found)
    return found[0]


def save(state: dict) -> None:
    """Leave a checkpoint; renamed, so that nobody takes half of one."""
    aside = FOLDER / "checkpoint.new"
    data = io.BytesIO()
    torch.save(state, data)
    aside.write_bytes(data.getvalue())
    aside.replace(FOLDER / "checkpoint")


def main() -> None:
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    choices = json.loads((FOLDER / "architecture.json").read_text())["choices"]
    torch.manual_seed(int(os.environ["NAS_SEED"]))
    model = network(choices)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    history = []
    if state := checkpoint(rank == 0):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history = state["history"]
        print(f"goes on after epoch {len(history)}", flush=True)
    points, labels = spirals(0)
    held_out, truth = spirals(1)
    for epoch in range(len(history), int(os.environ["NAS_EPOCHS"])):
        order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(epoch))
        for batch in order.view(-1, 64):
            mine = batch[rank::count]
            optimizer.zero_grad()
            nn.functional.cross_entropy(parallel(points[mine]), labels[mine]).backward()
            optimizer.step()
        with torch.no_grad():
            history.append((model(held_out).argmax(1) == truth).float().mean().item())
        if rank == 0:
            save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history})
            print(f"epoch {epoch + 1}: accuracy {history[-1]:.3f}", flush=True)
    if rank == 0:
        result = {"metrics": {"accuracy": history[-1]}, "history": history}
        (FOLDER / "result.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
