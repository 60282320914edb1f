"""The GPU: whether the one that was asked for can be used, and how a training uses it."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from nas_api import names
from nas_api.child import UsedGpu
from nas_api.experiment import GpuSpec

# With its tensor cores come bfloat16 and TF32.
_AMPERE = 8


class NoCuda(Exception):
    """A GPU was asked for, and torch cannot use one; the message is one sentence that names the cure."""


def prepare(environment: Mapping[str, str]) -> None:
    """Try the GPU if one was asked for, and set what holds for all trainings of the process on it.

    Args:
        environment: ``NAS_GPU`` says by which name a GPU was asked for, ``LOCAL_RANK`` which of several is this
            process' own.

    Raises:
        NoCuda: there is none, or it computes nothing.
    """
    asked = environment.get(names.ENV_GPU)
    if asked:
        try:
            # A first kernel: a driver that is there may be too old for this torch, and a GPU too old or too new.
            torch.ones(1, device=f"cuda:{environment.get('LOCAL_RANK', '0')}").add_(1).item()
        # AssertionError: a build without CUDA. RuntimeError: the driver's or the device's own words.
        except (AssertionError, RuntimeError) as error:
            raise NoCuda(f"{asked} was asked for, but {_complaint(error)}") from error
    if torch.cuda.is_available():
        # Shapes stay the same from step to step, so that trying algorithms pays.
        torch.backends.cudnn.benchmark = True
        # TF32 for what is left in float32; convolutions have it anyway.
        torch.set_float32_matmul_precision("high")


def _complaint(error: BaseException) -> str:
    said = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return f"this image has no CUDA ({said}): use one that has it, in trainer.image or the chart's images.trainer"
    return (
        f"torch {torch.__version__} cannot use it ({said}): repair the node's driver, or use a trainer image whose CUDA"
        " fits it"
    )


@dataclass(frozen=True)
class Gpu:
    """How a training uses a GPU."""

    settings: GpuSpec
    used: UsedGpu
    """What is told of it."""
    half: torch.dtype | None
    """In what layers are computed; None: in float32."""

    def precision(self, device: torch.device) -> "torch.autocast | nullcontext[None]":
        """Return the block in which a forward pass runs on a device."""
        return nullcontext() if self.half is None else torch.autocast(device.type, self.half)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler | None:
        """Return what keeps small gradients of float16 above 0; other types need none."""
        return torch.amp.GradScaler(device.type) if self.half == torch.float16 else None


def on_gpu(settings: GpuSpec, device: torch.device) -> Gpu | None:
    """Return how a training uses a device; None: it is a CPU."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    precision: Literal["bfloat16", "float16", "tf32", "float32"] = "tf32" if major >= _AMPERE else "float32"
    half = None
    if settings.autocast:
        # Emulated it is slower than float32.
        whole = torch.cuda.is_bf16_supported(including_emulation=False)
        precision, half = ("bfloat16", torch.bfloat16) if whole else ("float16", torch.float16)
    used = UsedGpu(name=torch.cuda.get_device_name(device), capability=f"{major}.{minor}", precision=precision)
    return Gpu(settings, used, half)
