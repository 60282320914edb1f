"""Training of one convolutional network: whole epochs, each a function of the state before it, the seed and its number.

So a training that stops after any epoch and goes on from its state ends, on one CPU, with the same bits as
one that never stopped.
"""

import math
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas_api.child import FinalSettings, StoreLocation, TrainerInput
from nas_api.experiment import DatasetSpec, GpuSpec, OptimizerSpec
from nas_api.handover import Preprocessing
from nas_trainer.descent import Descent, choose_device, seed_weights
from nas_trainer.distributed import ALONE, Ranks
from nas_trainer.gpu import on_gpu
from nas_trainer.images.architectures import ImageArchitecture, build, multiply_adds, of_images
from nas_trainer.images.augmentation import altered
from nas_trainer.images.data import Images, load_images
from nas_trainer.images.export import FromPixels, onnx_model
from nas_trainer.images.preprocessing import UPSAMPLED_BY, augment, central_crops
from nas_trainer.schedule import learning_rate
from nas_trainer.task import Unsuitable

METRIC = "accuracy"
_HELD_OUT_BATCH = 2048
_HELD_OUT_PIXELS = _HELD_OUT_BATCH * 32 * 32


def images_on_device(spec: DatasetSpec, store: StoreLocation, *, cache: str | None, final: FinalSettings) -> Images:
    """Return a dataset on the device, ready for each of its streams; see ``load_images``."""
    device = choose_device()
    images = load_images(spec, store, cache=cache, test=final.test, on_validation=final.on_validation)
    images = images.to(device, _memory_format(device))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return images


def image_training(
    document: TrainerInput, load: Callable[..., Images] = images_on_device, ranks: Ranks = ALONE
) -> "ImageTraining":
    """Return the training that an input document of a convolutional network asks for.

    Args:
        document: what is asked for.
        load: :func:`images_on_device`, or what calls it once for several children.
        ranks: the processes that train it together.

    Raises:
        Unsuitable: the document asks for another metric, or for what the image cannot do.
        DatasetUnavailable: see :func:`nas_trainer.images.data.load_images`.
        StoreUnreachable: the dataset's server does not answer.
    """
    if document.metric != METRIC:
        raise Unsuitable(f"images are measured by {METRIC!r}, not {document.metric!r}: correct spec.objective.metric")
    architecture = of_images(document.architecture)
    device = choose_device()
    if document.gpu.compile and device.type == "cuda" and not _has_compiler():
        raise Unsuitable(
            "trainer.gpu.compile needs a C compiler in trainer.image: use an image with gcc, or leave it out"
        )
    final = document.final or FinalSettings()
    return ImageTraining(
        architecture,
        load(document.dataset, document.store, cache=document.dataset_cache, final=final),
        document.optimizer,
        document.batch_size,
        document.seed,
        device,
        final=document.final,
        gpu=document.gpu,
        ranks=ranks,
        epochs=document.epochs,
    )


class ImageTraining(Descent[nn.Module]):
    """One network, its optimiser and how far they are: a :class:`~nas_trainer.task.Task`.

    Args:
        architecture: what to build.
        images: the dataset, wherever it is; it is moved to the device.
        optimizer: which one, and its settings.
        batch_size: images a step; an epoch's incomplete last batch is left out.
        seed: decides the initial weights, and with the epoch's number its order and augmentation.
        device: where to train.
        final: what only final trainings change: when the learning rate falls, the normalisation's epsilon, and
            whether the images held out are the test set. None: nothing of it.
        gpu: how the device is used when it is a GPU; None: as the manifest's defaults say.
        ranks: the processes that train it together, each with its share of every batch and of the images held out.
        epochs: how many there will be in all, which schedules of the learning rate depend on.

    Raises:
        Unsuitable: there are fewer images in a batch than ranks.
    """

    def __init__(
        self,
        architecture: ImageArchitecture,
        images: Images,
        optimizer: OptimizerSpec,
        batch_size: int,
        seed: int,
        device: torch.device,
        *,
        final: FinalSettings | None = None,
        gpu: GpuSpec | None = None,
        ranks: Ranks = ALONE,
        epochs: int = 0,
    ) -> None:
        final = final or FinalSettings()
        self._memory_format = _memory_format(device)
        self._images = images.to(device, self._memory_format)
        self._held_out_images = self._images.held_out_images
        if isinstance(self._held_out_images, Tensor) and images.augmented:
            self._held_out_images = central_crops(self._held_out_images)
        # As many pixels at once as 2,048 images of CIFAR have.
        self._held_out_batch = max(1, min(_HELD_OUT_BATCH, _HELD_OUT_PIXELS // math.prod(images.shape[1:])))
        self._batch_size = min(batch_size, len(images.train_labels))
        if self._batch_size < ranks.count:
            raise Unsuitable(
                f"{ranks.count} pods cannot share a batch of {self._batch_size} images: lower finalTraining.pods, or"
                " raise trainer.batchSize"
            )
        self._multiply_adds = multiply_adds(architecture, images.shape, images.classes)
        seed_weights(seed)
        network = build(architecture, images.shape[0], images.classes, float(final.batch_norm_epsilon))
        network.to(device).to(memory_format=self._memory_format)  # type: ignore[call-overload]
        super().__init__(network, optimizer, seed, device, final, ranks, on_gpu(gpu or GpuSpec(), device))
        self._spec, self._epochs = optimizer, epochs
        self._smoothing = float(optimizer.label_smoothing)
        # Shares its weights with the network, whose names stay those of a checkpoint.
        parallel = ranks.parallel(self.network)
        compiled = self._gpu is not None and self._gpu.settings.compile
        self._forward: Callable[[Tensor], Tensor] = torch.compile(parallel) if compiled else parallel

    def metrics(self, last: int) -> dict[str, float]:
        """See :class:`~nas_trainer.task.Task`: accuracy in [0, 1], training loss in nats, and what an image costs."""
        accuracy = self._measure().item() if self._final.test else best_of_last(self.progress.metrics, last)
        return {
            METRIC: accuracy,
            "loss": self.progress.losses[-1],
            "parameters": float(self.parameters),
            "flops": float(self._multiply_adds),
        }

    def contract(self) -> Preprocessing:
        """See :class:`~nas_trainer.task.Task`."""
        images = self._images
        (channels, height, width), (mean, deviation) = images.shape, images.scale or (None, None)
        return Preprocessing(
            channels=channels,
            height=height,
            width=width,
            brightest=images.brightest,
            mean=mean,
            deviation=deviation,
            resized=UPSAMPLED_BY if images.augmented else 0,
            classes=images.class_names,
        )

    def onnx(self, *, compared: bool = True) -> tuple[bytes, float]:
        """See :class:`~nas_trainer.task.Task`; takes ``pixels`` (batch, c, h, w) as stored and returns ``logits``."""
        return onnx_model(self.learned, self.contract(), compared=compared)

    def once(self, batch: int) -> Callable[[], object]:
        """See :class:`~nas_trainer.task.Task`."""
        whole = FromPixels(self.learned, self.contract()).eval()
        pixels = torch.rand(batch, *self._images.shape, device=self._device) * self._images.brightest
        pixels = pixels.contiguous(memory_format=self._memory_format)

        @torch.no_grad()
        def work() -> object:
            with self._precision():
                return whole(pixels)

        return work

    def _epoch(self, epoch: int) -> list[float]:
        values = [self._train_epoch(epoch)]
        if not self._final.test:
            values.append(self._measure())
        # The one synchronisation of device and host in an epoch.
        measured: list[float] = torch.stack(values).tolist()
        return measured

    def _train_epoch(self, epoch: int) -> Tensor:
        """Train on every image once; return the mean loss as a tensor on the device, float32 ()."""
        images, labels = self._images.train_images, self._images.train_labels
        generator = self._generator(epoch)
        order = torch.randperm(len(labels), generator=generator, device=self._device)
        steps = len(labels) // self._batch_size
        share = self._ranks.share(self._batch_size)
        total = torch.zeros((), device=self._device)
        rate = self._decayed(learning_rate(self._spec, epoch, self._epochs), epoch)
        take_step = self._at_rate(self._step, rate)
        self.network.train()
        for step in range(steps):
            chosen = order[step * self._batch_size : (step + 1) * self._batch_size]
            batch = images[chosen[share]]
            if self._images.augmented:
                batch = augment(batch, generator, share, self._batch_size)
            batch = altered(batch, self._images.augmentation, generator, share, self._batch_size)
            total += take_step(batch.contiguous(memory_format=self._memory_format), labels[chosen[share]])
        return self._ranks.sum(total) / self._ranks.count / steps

    def _step(self, batch: Tensor, labels: Tensor) -> Tensor:
        """Learn from this rank's share of a batch; return what its mean loss adds to the ranks' mean, float32 ()."""
        with self._precision():
            loss = functional.cross_entropy(self._forward(batch), labels, label_smoothing=self._smoothing)
        if self._ranks.count > 1:
            loss = loss * self._ranks.weight(self._batch_size)
        self._learn(loss)
        if self._average is not None:
            self._average.update()
        return loss.detach().float()

    @torch.no_grad()
    def _measure(self) -> Tensor:
        """Return the accuracy on the images held out as a tensor on the device, float32 ()."""
        self.network.eval()
        share = self._ranks.share(len(self._images.held_out_labels))
        forward = self._forward if self._average is None else self._average.network
        correct = torch.zeros((), device=self._device)
        for start in range(share.start, share.stop, self._held_out_batch):
            part = slice(start, min(start + self._held_out_batch, share.stop))
            with self._precision():
                logits = forward(self._held_out_images[part])
            correct += (logits.argmax(1) == self._images.held_out_labels[part]).sum()
        return self._ranks.sum(correct) / len(self._images.held_out_labels)


def best_of_last(accuracies: tuple[float, ...], epochs: int) -> float:
    """Return the metric: the best accuracy of the last ``epochs`` epochs (paper section 4.1)."""
    return max(accuracies[-epochs:])


def _memory_format(device: torch.device) -> torch.memory_format:
    """Return how images lie in memory: convolutions on a GPU's tensor cores want the channels last."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def _has_compiler() -> bool:
    """Return whether torch.compile finds what it builds the launchers of a GPU's kernels with."""
    return "CC" in os.environ or any(shutil.which(name) for name in ("gcc", "clang", "cc"))
