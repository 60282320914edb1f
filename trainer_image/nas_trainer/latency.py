"""How long a trained network takes: the median of many runs, after some that warm up.

Random numbers and zeros take as long as real data: what a network computes does not depend on what it sees.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from nas_api.experiment import LatencySpec
from nas_trainer.export import runtime

_LEAST_WARM_UP = 3
_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def on_cpu(model: bytes, spec: LatencySpec) -> float:
    """Return the seconds that ONNX Runtime takes for a model, with inputs of zeros.

    Args:
        model: ONNX; the dimension that has no number is the batch.
        spec: the manifest's.

    Raises:
        ExportFailed: ONNX Runtime is not there, or refuses the model.
    """
    with runtime() as onnxruntime:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = spec.threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        inputs = {
            each.name: np.zeros(
                [spec.batch if isinstance(size, str) else size for size in each.shape], _TYPES[each.type]
            )
            for each in session.get_inputs()
        }

        def run() -> float:
            started = time.perf_counter()
            session.run(None, inputs)
            return time.perf_counter() - started

        return _median(run, spec.runs)


def on_gpu(work: Callable[[], object], spec: LatencySpec) -> float:
    """Return the seconds that work takes the current GPU, from one event of CUDA to another.

    What the host needs to launch the kernels counts where the GPU waits for it, as it would in a server.
    """

    def run() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        work()
        end.record()
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds / 1000

    return _median(run, spec.runs)


def _median(run: Callable[[], float], runs: int) -> float:
    for _ in range(max(_LEAST_WARM_UP, runs // 10)):
        run()
    return statistics.median(run() for _ in range(runs))
