"""Other weights under the same name are noticed wherever two things made from a model meet."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import apportion as ap
from apportion.activations import (
    LiveSource,
    LoadedModel,
    StoreSource,
    capture_to_store,
    load_documents,
    load_model,
)
from apportion.activations.files import Folder
from apportion.activations.manifest import MANIFEST, PROGRESS, Manifest, Progress, read_manifest, write_json
from apportion.activations.weights import fingerprint_of
from apportion.compare.origin import check_fair
from apportion.errors import InvalidConfig, InvalidInput
from apportion.recipes import find_recipe
from apportion.training import TrainConfig, train

from .conftest import LAYER, shared

TEXTS = load_documents([f"the text of number {n} is about {n * n} things and some more words" for n in range(40)])
SETTINGS = {"context": 16, "shard_rows": 64, "outliers": None}  # bounds on norms follow the weights


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(shared("models/tiny-lm"), tmp_path / "model")


def train_on(folder) -> None:
    """Change one number of the last layer, which no shape, name or size tells of."""
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(weights) if "layers.1." in name and name.endswith("weight"))
    weights[name] = weights[name].clone()
    weights[name].view(-1)[-1] += 1.0
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_fingerprint_knows_every_number_and_no_device(tiny):
    first = fingerprint_of(tiny.model)
    assert first == fingerprint_of(tiny.model) and len(first) == 32
    layer = torch.nn.Linear(3, 2)
    before = fingerprint_of(layer)
    assert fingerprint_of(layer.to("cpu")) == before != fingerprint_of(layer.half())
    with torch.no_grad():
        layer.float().bias[1] += 1e-3
    assert fingerprint_of(layer) != before


def test_weights_that_accelerate_keeps_elsewhere_count_too(tiny, tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = load_model(str(shared("models/tiny-lm"))).model
    ids = {"input_ids": torch.arange(5, 15).view(2, 5)}
    names = [name for name, _ in model.named_children()]
    places = {f"gpt_neox.{name}": "cpu" for name, _ in model.gpt_neox.named_children() if name != "layers"}
    places |= {f"gpt_neox.layers.{at}": "disk" if at else "cpu" for at in range(len(model.gpt_neox.layers))}
    places |= {name: "cpu" for name in names if name != "gpt_neox"}
    spread = accelerate.dispatch_model(model, places, offload_dir=str(tmp_path), main_device="cpu")
    assert any(parameter.device.type == "meta" for parameter in spread.parameters())
    loaded = LoadedModel(spread, None, "spread", causal=True, device_map="auto")
    assert loaded.device == torch.device("cpu") and loaded.dtype == torch.float32
    assert fingerprint_of(spread) == fingerprint_of(tiny.model)
    from apportion.activations.capture import capture

    sites = [LAYER, "gpt_neox.layers.1.attention.dense:input.head=1"]
    found, expected = capture(spread, sites, ids), capture(tiny.model, sites, ids)
    assert all(torch.equal(found[site], expected[site]) for site in sites)
    with pytest.raises(InvalidConfig, match="spread over devices by the map 'auto'"):
        loaded.to("cpu")


def test_a_capture_does_not_go_on_with_other_weights(folder, tmp_path):
    model, out = str(folder), tmp_path / "store"
    whole = capture_to_store(model, LAYER, TEXTS, out, **SETTINGS)
    assert whole.weights == fingerprint_of(load_model(model).model) and len(whole.shards) > 3
    place = Folder(out)
    done = Progress(
        settings=whole.settings,
        widths=whole.modules,
        shards=whole.shards[:1],
        weights=whole.weights,
        cursor={"document": whole.shards[0].documents},
    )
    train_on(folder)
    with pytest.raises(InvalidConfig, match=f"other weights of .*{whole.weights}.* than it has now"):
        capture_to_store(model, LAYER, TEXTS, out, **SETTINGS)
    place.remove(MANIFEST)
    write_json(place, PROGRESS, done)
    with pytest.raises(InvalidConfig, match="other weights of"):
        capture_to_store(model, LAYER, TEXTS, out, **SETTINGS)
    with pytest.raises(InvalidConfig, match="model_dtype was 'float32' and is now 'bfloat16'"):
        capture_to_store(load_model(model, dtype="bfloat16"), LAYER, TEXTS, out, **SETTINGS)


def test_trainings_and_saes_refuse_a_store_of_other_weights(folder, tmp_path):
    model, out = str(folder), tmp_path / "store"
    capture_to_store(model, LAYER, TEXTS, out, **SETTINGS)
    source = StoreSource(out, heldout=0.4)
    configs = {"one": find_recipe("token_choice").make(source.d_in, 64, 4, 0)}
    settings = TrainConfig.parse({"n_tokens": 64, "batch_size": 32}, "test")
    sae = train(configs, source, tmp_path / "runs", settings)["one"]
    assert sae.metadata["source"]["weights"] == source.manifest.weights

    shutil.rmtree(out)
    train_on(folder)
    capture_to_store(model, LAYER, TEXTS, out, **SETTINGS)
    other = StoreSource(out, heldout=0.4)
    with pytest.raises(InvalidConfig, match="holds a training with other weights of the model; "):
        train(configs, other, tmp_path / "runs", settings)
    with pytest.raises(InvalidInput, match="trained on weights"):
        check_fair(sae, other)
    assert LiveSource(model, LAYER, TEXTS, context=16).describe()["weights"] == other.manifest.weights

    # What was made before there were fingerprints has none and is read as before.
    manifest = read_manifest(Folder(out)).model_dump(mode="json")
    del manifest["weights"], manifest["settings"]["model_dtype"], manifest["settings"]["device_map"]
    write_json(Folder(out), MANIFEST, Manifest.parse(manifest, "old"))
    old = StoreSource(out, heldout=0.4)
    assert "weights" not in old.describe()
    check_fair(sae, old)
    assert isinstance(train(configs, old, tmp_path / "runs", settings)["one"], ap.SAE)
    assert capture_to_store(model, LAYER, TEXTS, out, **SETTINGS).weights == ""
