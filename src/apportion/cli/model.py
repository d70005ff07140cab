"""What every command that loads a model can be told about it."""

from __future__ import annotations

from dataclasses import dataclass

from ..activations import LoadedModel, load_model
from ..activations.precision import DeviceMap, ModelDtype
from .output import say


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a model is loaded."""

    model_dtype: ModelDtype = "auto"
    """Type of its weights; auto is float32 up to a billion parameters, and above that the type of the file."""
    device_map: DeviceMap | None = None
    """Spread it over several devices, as accelerate does, in place of --device."""

    def load(self, name: str, device: str) -> LoadedModel:
        """The model ``name`` on ``device``, or spread over several. What is to be known of it is said.

        Raises: as ``load_model`` and ``LoadedModel.to`` do.
        """
        loaded = load_model(name, dtype=self.model_dtype, device_map=self.device_map)
        if loaded.note:
            say(f"{name} is {loaded.note}")
        return loaded if self.device_map else loaded.to(device)
