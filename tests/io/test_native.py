"""Our own files: the same bits back, nothing executed, nothing damaged or newer accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import apportion as ap
from apportion.allocators import AllocatorConfig, MutualChoiceConfig, ThresholdConfig, TokenChoiceConfig
from apportion.errors import InvalidCheckpoint, InvalidConfig, InvalidInput, StorageFailure, UnknownName
from apportion.files import seal, sha256

from ..conftest import inputs, make_sae

RULES = (TokenChoiceConfig.for_k(5), ThresholdConfig(k=4.5))


def saved(folder: Path, rule: AllocatorConfig = RULES[1], dtype: torch.dtype = torch.float32) -> ap.SAE:
    """An SAE with numbers in every tensor, in ``folder``."""
    sae = make_sae(rule, dtype=dtype)
    sae.metadata = {"note": "θ", "numbers": [1, 2.5, None]}
    if "theta" in dict(sae.allocator.named_buffers()):
        sae.allocator.theta.fill_(0.7)
    ap.save(sae, folder)
    return sae


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, rule: AllocatorConfig, dtype: torch.dtype) -> None:
    sae = saved(tmp_path, rule, dtype)
    loaded = ap.load(tmp_path)
    assert loaded.config == sae.config and loaded.metadata == sae.metadata
    state, expected = loaded.state_dict(), sae.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value)
    assert loaded.encoder.weight.is_contiguous()
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    x = inputs(32, dtype=dtype)
    assert torch.equal(loaded.encode(x).values, sae.encode(x).values)
    assert torch.equal(loaded(x), sae(x))


def test_a_rule_that_couples_rows_is_not_saved_for_inference(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="MutualChoice couples rows"):
        ap.save(make_sae(MutualChoiceConfig.for_k(4)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    sae = saved(tmp_path / "one")
    ap.save(sae, tmp_path / "two")
    ap.save(ap.load(tmp_path / "one"), tmp_path / "three")
    for name in ("sae.safetensors", "sae.json"):
        first = (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "two" / name).read_bytes() == first == (tmp_path / "three" / name).read_bytes()


def test_the_file_has_the_names_and_layouts_of_peers(tmp_path: Path) -> None:
    sae = saved(tmp_path)
    tensors = load_file(tmp_path / "sae.safetensors")
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    assert shapes == {
        "W_enc": (24, 96),
        "b_enc": (96,),
        "W_dec": (96, 24),
        "b_dec": (24,),
        "allocator.theta": (),
    }
    x = inputs(8)
    pre = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    z = torch.where(pre > tensors["allocator.theta"], pre, 0)
    torch.testing.assert_close(sae.encode(x).to_dense(), z, atol=1e-5, rtol=1e-5)


def flip(file: Path, at: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    file.write_bytes(data)


def tamper(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a tensor bit": ("sae.safetensors", lambda file: flip(file, 0.7)),
    "a header bit": ("sae.safetensors", lambda file: flip(file, 0.005)),
    "cut tensors": ("sae.safetensors", lambda file: file.write_bytes(file.read_bytes()[:-4])),
    "no tensors": ("sae.safetensors", Path.unlink),
    "another k": ("sae.json", lambda file: tamper(file, '"k": 4.5', '"k": 4.25')),
    "another width": ("sae.json", lambda file: tamper(file, '"d_in": 24', '"d_in": 23')),
    "other metadata": ("sae.json", lambda file: tamper(file, "2.5", "2.6")),
    "cut description": ("sae.json", lambda file: file.write_bytes(file.read_bytes()[:-30])),
    "no object": ("sae.json", lambda file: file.write_text("[]")),
    "not UTF-8": ("sae.json", lambda file: file.write_bytes(b"\xff\xfe{}")),
    "no description": ("sae.json", Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_one_sentence_that_names_the_file(tmp_path: Path, damage: str) -> None:
    saved(tmp_path)
    name, act = DAMAGE[damage]
    act(tmp_path / name)
    with pytest.raises(InvalidCheckpoint) as refusal:
        ap.load(tmp_path)
    assert str(tmp_path / name) in str(refusal.value) and "\n" not in str(refusal.value)


def edit(folder: Path, **changes: object) -> None:
    """Change the description as another release might have written it."""
    file = folder / "sae.json"
    file.write_text(json.dumps(seal(json.loads(file.read_text()) | changes, file)))


def test_other_formats_versions_keys_and_rules_are_refused(tmp_path: Path) -> None:
    config = saved(tmp_path).config.model_dump(mode="json")
    for changes, error, words in (
        (
            {"version": 2},
            InvalidCheckpoint,
            "has version 2 of apportion-sae, this release reads up to 1; upgrade",
        ),
        ({"version": "1"}, InvalidCheckpoint, "has version '1'"),
        ({"format": "apportion-store"}, InvalidCheckpoint, "has format 'apportion-store', expected"),
        ({"config": config | {"width": 3}}, InvalidConfig, r"unknown key 'width' \(known keys: allocator, d_in"),
        ({"config": config | {"d_sae": 3}}, InvalidConfig, "k = 4.5 must be above 0 and at most d_sae = 3"),
        (
            {"config": config | {"d_sae": 95}},
            InvalidCheckpoint,
            r"what its config says.*\(24, 95\)",
        ),
        ({"config": config | {"allocator": {"kind": "treshold"}}}, UnknownName, "nearest: 'threshold'"),
    ):
        saved(tmp_path)
        edit(tmp_path, **changes)
        with pytest.raises(error, match=words) as refusal:
            ap.load(tmp_path)
        assert "\n" not in str(refusal.value)


def test_missing_and_extra_tensors_are_refused(tmp_path: Path) -> None:
    for change in ({"W_enc": None}, {"allocator.theta": None}, {"b_more": torch.zeros(3)}):
        saved(tmp_path)
        tensors = load_file(tmp_path / "sae.safetensors") | change
        data = {name: value for name, value in tensors.items() if value is not None}
        save_file(data, tmp_path / "sae.safetensors")
        digest = sha256((tmp_path / "sae.safetensors").read_bytes())
        edit(tmp_path, sha256=digest)
        with pytest.raises(InvalidCheckpoint, match="does not hold what its config says"):
            ap.load(tmp_path)


def test_paths_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "none", tmp_path / "file", tmp_path):
        with pytest.raises(InvalidCheckpoint, match=r"sae\.json .*pass the folder of an SAE"):
            ap.load(path)
    with pytest.raises(StorageFailure, match="cannot write"):
        ap.save(make_sae(RULES[0]), tmp_path / "file")


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    sae = saved(tmp_path)
    x = inputs(8)
    expected = sae(x)
    other = make_sae(RULES[1], seed=9)
    other.metadata = {"bad": float("nan")}
    with pytest.raises(InvalidInput, match=r"sae\.json cannot hold a value"):
        ap.save(other, tmp_path)
    other.metadata = {}
    (tmp_path / ".tmp-sae.json").mkdir()  # the second of the two files cannot be written
    with pytest.raises(StorageFailure):
        ap.save(other, tmp_path)
    assert torch.equal(ap.load(tmp_path)(x), expected)
    assert not (tmp_path / ".tmp-sae.safetensors").exists()


def test_nothing_in_the_package_unpickles() -> None:
    words = (
        "import (pickle|marshal|joblib|dill|shelve)",
        r"torch\.(load|save)\(",
        "allow_pickle=True",
        r"\bexec\(",
    )
    for file in Path(ap.__file__).parent.rglob("*.py"):
        for line in file.read_text().splitlines():
            assert not re.search("|".join(words), line), f"{file}: {line}"


class Guest(torch.nn.Module):
    """A model that an SAE lives in."""

    def __init__(self, sae: ap.SAE) -> None:
        super().__init__()
        self.sae, self.linear = sae, torch.nn.Linear(4, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES[:2], ids=lambda rule: rule.kind)
def test_converting_the_model_around_it_changes_no_feature(
    tmp_path: Path, rule: AllocatorConfig, dtype: torch.dtype
) -> None:
    saved(tmp_path, rule)
    x = inputs(64).to(dtype)
    expected = ap.load(tmp_path).encode(x)
    guest = Guest(ap.load(tmp_path)).to(dtype)
    assert guest.linear.weight.dtype == dtype and guest.sae.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        code = guest.sae.encode(x)
    assert torch.equal(code.indices, expected.indices)
    assert torch.equal(code.values, expected.values)
    ap.save(guest.sae, tmp_path / "again")
    same = (tmp_path / "again" / "sae.safetensors").read_bytes() == (tmp_path / "sae.safetensors").read_bytes()
    assert same


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Other tensors under checksums that hold."""
    tensors = load_file(folder / "sae.safetensors")
    change(tensors)
    save_file(tensors, folder / "sae.safetensors")
    edit(folder, sha256=sha256((folder / "sae.safetensors").read_bytes()))


SENSELESS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "half NaN": (lambda t: t["W_enc"][:12].fill_(torch.nan), "'W_enc' holds a NaN"),
    "an infinite bias": (lambda t: t["b_dec"].fill_(torch.inf), "'b_dec' is not finite"),
    "a NaN threshold": (lambda t: t["allocator.theta"].fill_(torch.nan), r"'allocator\.theta' holds a NaN"),
    "one that overrides": (
        lambda t: t.update({"encoder.weight": torch.ones(96, 24)}),
        "'encoder.weight' does not",
    ),
    "whole numbers": (
        lambda t: t.update(W_enc=t["W_enc"].int(), W_dec=t["W_dec"].int()),
        "a torch.int32 of shape",
    ),
    "another type": (lambda t: t.update(b_enc=t["b_enc"].double()), "'b_enc' is of type torch.float64"),
    "none": (lambda t: t.pop("b_enc"), "'b_enc' is missing"),
}


@pytest.mark.parametrize("case", SENSELESS)
def test_senseless_tensors_under_checksums_that_hold_are_refused(tmp_path: Path, case: str) -> None:
    saved(tmp_path)
    change, words = SENSELESS[case]
    rewritten(tmp_path, change)
    with pytest.raises(InvalidCheckpoint, match=words):
        ap.load(tmp_path)


def test_a_config_asks_for_no_memory_that_the_file_does_not_fill(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "sae.json").read_text())["config"]
    edit(tmp_path, config=config | {"d_sae": 10**12})
    with pytest.raises(InvalidCheckpoint, match="expected floats"):
        ap.load(tmp_path)


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        3,
        None,
        {"source": []},
        {"source": {"heldout": "x"}},
        {"training": {"l0_train": []}},
        {"calibration": 1},
        {"source": {"tokens": 3}},
        {"source": {"tokens": {"norm_bound": "x"}}},
        {"calibration": {"fvu_before": "x"}},
        {"calibration": {"tokens": 0}},
        {"training": {"sparsity": []}},
    ],
    ids=str,
)
def test_metadata_that_no_command_can_read_are_refused(tmp_path: Path, metadata: object) -> None:
    saved(tmp_path)
    edit(tmp_path, metadata=metadata)
    with pytest.raises(InvalidCheckpoint, match="its metadata"):
        ap.load(tmp_path)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    sae = saved(tmp_path)
    before = (tmp_path / "sae.safetensors").read_bytes()
    sae.W_dec.data[0, 0] = torch.nan
    with pytest.raises(InvalidInput, match="'W_dec' is not finite"):
        ap.save(sae, tmp_path)
    assert (tmp_path / "sae.safetensors").read_bytes() == before
