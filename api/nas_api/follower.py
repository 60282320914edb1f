"""What a follower is told by the operator that makes its pod."""

from typing import Literal

from nas_api.base import Model
from nas_api.child import StoreLocation
from nas_api.experiment import DatasetSpec, MlflowSpec


class FollowerInput(Model):
    """The JSON document in ``NAS_FOLLOWER_INPUT``. Credentials come from the environment, never from here."""

    version: Literal[1] = 1
    experiment: str
    namespace: str
    uid: str
    store: StoreLocation
    mlflow: MlflowSpec
    dataset: DatasetSpec | None = None
    """What the children learn: the module of an image's network depends on it. None: no module is handed over."""
