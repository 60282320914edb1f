"""The ranks of one training: processes that take a share of every batch each and average their gradients.

Everything that a rank must have in common with the others it has from the first one: initial weights, the checkpoint,
whether there is anything to train. That one alone reads and writes the store, so ranks of two launches cannot be mixed
up: whoever is in one process group is of one launch. A training of one process has :data:`ALONE`, with which each call
gives back what it was given.
"""

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

_log = structlog.get_logger()

# Who is lost, and when others have waited long enough, is for Kubernetes to say: the pods' deadline ends all waiting.
_FOREVER = timedelta(days=365)
# Of one try to reach the first rank; between two SIGTERM is heard.
_TRY = timedelta(seconds=5)
_LOOK_SECONDS = 0.2
_JOINED = "joined"
# How gloo and the store say that the other side is gone; NCCL's errors have a type of their own.
_LOST_WORDS = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "connectFullMesh")


class RankLost(Exception):
    """Another rank is gone, and with it the training; the message says what was seen of it."""


@dataclass(frozen=True)
class Ranks:
    """One process of a training among others."""

    number: int
    """From 0."""
    count: int

    @property
    def first(self) -> bool:
        """Whether this is the one that reads and writes the store."""
        return self.number == 0

    def shared(self, data: bytes | None) -> bytes | None:
        """Return what the first rank has given here; the others' own is ignored."""
        if self.count == 1:
            return data
        # As tensors: what is pickled could run code.
        size = torch.tensor([-1 if data is None else len(data)])
        dist.broadcast(size, 0)
        if size.item() < 0:
            return None
        content = torch.empty(int(size.item()), dtype=torch.uint8)
        if self.first and data:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(content, 0)
        return content.numpy().tobytes()

    def share(self, total: int) -> slice:
        """Return which of ``total`` things side by side are this rank's; shares differ by one at most."""
        return slice(total * self.number // self.count, total * (self.number + 1) // self.count)

    def weight(self, total: int) -> float:
        """Return by what a mean over this rank's share is multiplied so that the ranks' mean is that over all."""
        share = self.share(total)
        return float(share.stop - share.start) * self.count / total

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of the ranks' values; the value itself may be changed."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    def parallel(self, network: nn.Module) -> nn.Module:
        """Return what computes as the network does, and averages its gradients over the ranks as they come about.

        The network keeps its parameters, which become the first rank's; its batch normalisation takes the statistics of
        all ranks' shares together from now on.
        """
        if self.count == 1:
            return network
        _synchronise(network)
        return DistributedDataParallel(network, forward_sync_buffers=False)


ALONE = Ranks(0, 1)


@contextmanager
def joined(environment: Mapping[str, str]) -> Iterator[Ranks]:
    """Meet the other ranks, as ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT`` say; alone without these.

    With GPUs, a rank takes the one of the number ``LOCAL_RANK``.

    Raises:
        RankLost: one of them came, and is gone again.
    """
    count = int(environment.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    ranks = Ranks(int(environment["RANK"]), count)
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")))
    with losses():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=_store(environment, ranks),
            rank=ranks.number,
            world_size=count,
            timeout=_FOREVER,
        )
    _log.info("all ranks are here", rank=ranks.number, ranks=count)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def losses() -> Iterator[None]:
    """Tell errors that come from another rank's end from all others.

    Raises:
        RankLost: instead of such an error.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(words in str(error) for words in _LOST_WORDS):
            raise
        raise RankLost(str(error).splitlines()[0]) from error


def _store(environment: Mapping[str, str], ranks: Ranks) -> Store:
    """Return the store on the first rank through which all find each other, once all have come.

    They are waited for here and not by torch, which would not hear SIGTERM meanwhile.
    """
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    # Where torchrun has started the ranks, it has the store already.
    serves = ranks.first and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = _server(port, ranks) if serves else _client(host, port, ranks)
    store.set_timeout(_FOREVER)
    here = store.add(_JOINED, 1)
    if here < ranks.count:
        _log.info("waits for other ranks", rank=ranks.number, here=here, ranks=ranks.count)
    while store.add(_JOINED, 0) < ranks.count:
        time.sleep(_LOOK_SECONDS)
    return store


def _server(port: int, ranks: Ranks) -> TCPStore:
    # A pod's own name may not be known yet, and need not be.
    return TCPStore("localhost", port, ranks.count, is_master=True, timeout=_TRY, wait_for_workers=False)


def _client(host: str, port: int, ranks: Ranks) -> TCPStore:
    waiting = False
    while True:
        try:
            # torch says a page about a name that does not exist.
            socket.getaddrinfo(host, port)
            return TCPStore(host, port, ranks.count, is_master=False, timeout=_TRY, wait_for_workers=False)
        except (OSError, dist.DistNetworkError) as error:
            if not waiting:
                _log.info("waits for the first rank", rank=ranks.number, reason=str(error).splitlines()[0])
            waiting = True
        time.sleep(_LOOK_SECONDS)


def _synchronise(network: nn.Module) -> None:
    """Give each batch normalisation of a network a forward pass over all ranks; parameters stay the same objects."""
    for name, module in network.named_children():
        if isinstance(module, nn.BatchNorm2d):
            setattr(network, name, _synchronised(module))
        else:
            _synchronise(module)


def _synchronised(norm: nn.BatchNorm2d) -> nn.Module:
    if norm.weight.is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-any-return, no-untyped-call]
    ours = _SynchronisedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    # As torch's conversion does it: an optimiser has these already.
    ours.weight, ours.bias = norm.weight, norm.bias
    ours.running_mean, ours.running_var = norm.running_mean, norm.running_var
    ours.num_batches_tracked = norm.num_batches_tracked
    return ours


class _Sum(torch.autograd.Function):
    """The sum of the ranks' tensors; each rank's loss depends on it, so that gradients are summed likewise."""

    @staticmethod
    def forward(_context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _sum(tensor: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


class _SynchronisedBatchNorm(nn.BatchNorm2d):
    """``torch.nn.SyncBatchNorm`` for CPUs, which torch's does not know."""

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (batch, c, h, w) normalised by mean and variance over the batches of all ranks."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        # Two passes, as torch does: the difference of two large sums would lose most digits.
        sums = _sum(torch.cat([x.sum((0, 2, 3)), x.new_tensor([x.numel() / x.shape[1]])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean[:, None, None]
        variance = _sum((centred**2).sum((0, 2, 3))) / count
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]
