"""What a search on this machine needs beyond the light client, and what to say where it is missing."""

from importlib.util import find_spec

from nas_cli.errors import Refusal

RUN = {
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "optuna": "optuna",
    "pillow": "PIL",
    "pyarrow": "pyarrow",
    "safetensors": "safetensors",
    "scikit-learn": "sklearn",
    "torch": "torch",
}
"""The libraries of the extra ``run``, and what each is imported as."""


def require_run() -> None:
    """Do nothing where a search can run on this machine.

    Raises:
        Refusal: libraries are missing; it names them and the command that installs them.
    """
    missing = [name for name, module in RUN.items() if find_spec(module) is None]
    if missing:
        raise Refusal(
            f"a search on this machine needs {', '.join(missing)}, not installed with the light client:"
            ' pip install "nas-operator[run]"'
        )
