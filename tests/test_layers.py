"""The table of layers holds: nothing imports upwards, and optional libraries stay in their own files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "apportion"
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS: dict[str, int] = {
    **dict.fromkeys(
        (
            *("errors", "clock", "schedules", "world", "config", "files", "device", "workspace", "spans"),
            *("progress", "_folder"),
        ),
        0,
    ),
    **dict.fromkeys(("code", "affinities", "trace", "intervention", "ops", "transforms"), 10),
    **dict.fromkeys(("firing", "budgets", "allocators"), 20),
    "sae": 30,
    **dict.fromkeys(("objectives", "metrics", "io"), 40),
    **dict.fromkeys(("activations", "complexity"), 40),
    **dict.fromkeys(("calibrate", "training", "downstream", "evaluate", "analysis", "compare"), 50),
    **dict.fromkeys(("recipes", "bench", "report", "cli"), 60),
    **dict.fromkeys(("__init__", "__main__", "_public"), 70),
}
NOT_EACH_OTHER = {"objectives", "metrics", "io", "activations", "complexity"}
ON_LAYER_0 = {"activations", "complexity"}
ONLY_THE_CONTRACT = {"sae": "allocators.base"}
NO_NAMED_RULE = {
    *("sae", "calibrate", "training", "downstream", "evaluate", "analysis", "compare"),
    *("objectives", "metrics", "io"),
}
OPTIONAL = {
    "transformers": {"activations/models.py"},
    "datasets": {"activations/tables.py"},
    "huggingface_hub": {"activations/places.py"},
    "wandb": {"training/log.py"},
    "tensorboard": {"training/log.py"},
    "httpx2": {"complexity/endpoint.py"},
    "textstat": {"complexity/readability.py"},
    "sklearn": {"complexity/probe.py", "metrics/probing.py"},
    "scipy": {"complexity/probe.py"},
    "triton": {"ops/kernels/largest.py", "ops/kernels/ragged.py", "ops/kernels/soft.py"},
    "plotly": {"report/page.py"},
    "jinja2": {"report/page.py"},
    "markupsafe": {"report/page.py"},
    "sae_lens": set(),
}


def room_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Dotted names that a file imports, ours relative to the package (``ops.select``)."""
    package = ("apportion", *path.relative_to(SOURCE).with_suffix("").parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else ()
            module = [*base, *([node.module] if node.module else [])]
            found += [".".join([*module, alias.name]) for alias in node.names]
    return found


def ours(path: Path) -> list[str]:
    return [name.removeprefix("apportion.") for name in imports(path) if name.startswith("apportion.")]


def test_every_room_is_in_the_table():
    assert {room_of(path) for path in FILES} == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_imports_upwards(path):
    room = room_of(path)
    for name in ours(path):
        other = name.split(".")[0]
        if room in ("__init__", "__main__", "_public"):
            continue
        assert other in LAYERS, f"{path} imports {name}"
        assert LAYERS[other] <= LAYERS[room], f"{room} imports {name}, which lies above it"
        if room in NOT_EACH_OTHER:
            assert other == room or other not in NOT_EACH_OTHER, f"{room} imports its neighbour {name}"
        if room in ON_LAYER_0:
            assert other == room or LAYERS[other] == 0, f"{room} imports {name}"
        if room == "budgets":
            assert other != "allocators", "a budget imports an allocator"
        if other == "allocators" and room in ONLY_THE_CONTRACT:
            assert name.startswith(ONLY_THE_CONTRACT[room]), f"{room} imports the named rule {name}"
        if room in NO_NAMED_RULE and other == "allocators":
            assert name.startswith("allocators.base"), f"{room} imports the named rule {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_optional_libraries_stay_in_their_files(path):
    for name in imports(path):
        library = name.split(".")[0]
        if library in OPTIONAL:
            assert str(path.relative_to(SOURCE)) in OPTIONAL[library], f"{path} imports {name}"


def test_allocators_import_siblings_only_to_freeze_into_them():
    shared = {"base", "one_cut", "feature_fit", "unseen"}  # the contract, and how thresholds are fitted
    for path in (SOURCE / "allocators").glob("*.py"):
        siblings = {n.split(".")[1] for n in ours(path) if n.startswith("allocators.")} - shared
        if path.name != "__init__.py":
            inference = {"feature_threshold", "gate", "scaled_thresholds", "threshold", "token_choice"}
            assert siblings <= inference, f"{path.name} imports {siblings}"


def test_importing_the_package_loads_no_optional_library():
    import subprocess
    import sys

    program = "import sys, apportion._public; print([m for m in sys.argv[1:] if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program, *OPTIONAL, "pandas", "matplotlib"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
