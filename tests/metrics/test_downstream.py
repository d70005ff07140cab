"""The downstream accumulators on made-up logits, against torch's own losses, and their exactness."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from apportion.errors import InvalidInput, NonFiniteActivations
from apportion.metrics import CausalDownstream, EncoderDownstream
from apportion.metrics import downstream as module

C, L, V = 3, 11, 17


def made_up(seed: int = 0, c: int = C, length: int = L) -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    logits = {name: torch.randn(c, length, V, generator=gen) for name in ("clean", "patched", "zero")}
    mask = (torch.arange(length) < torch.tensor([length, 7, 4])[:c, None]).long()
    keep = (torch.rand(c, length, generator=gen) < 0.7) & mask.bool()
    ids = torch.randint(0, V, (c, length), generator=gen)
    return {f"{name}_logits": value for name, value in logits.items()} | {
        "input_ids": ids,
        "keep": keep,
        "attention_mask": mask,
    }


def measure(*batches: dict[str, torch.Tensor]) -> dict[str, Any]:
    metric = CausalDownstream()
    for batch in batches:
        metric.update(**batch)
    return metric.result()


def test_against_torch_cross_entropy_and_kl_div(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ENTRIES", 5 * V)  # several chunks per batch
    batch = made_up()
    places = [
        (c, i)
        for c in range(C)
        for i in range(L - 1)
        if batch["keep"][c, i] and batch["attention_mask"][c, i + 1]
    ]
    rows, columns = (torch.tensor(list(t)) for t in zip(*places, strict=True))
    target = batch["input_ids"][rows, columns + 1]
    picked = {n: batch[f"{n}_logits"][rows, columns].double() for n in ("clean", "patched", "zero")}
    ce = {name: float(F.cross_entropy(logits, target)) for name, logits in picked.items()}
    kl = F.kl_div(
        picked["patched"].log_softmax(-1),
        picked["clean"].log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    result = measure(batch)
    assert result["downstream_tokens"] == len(places)
    for name, value in ce.items():
        assert result[f"ce_{name}"] == pytest.approx(value, rel=1e-13)
    assert result["kl"] == pytest.approx(float(kl), rel=1e-12)
    score = (ce["zero"] - ce["patched"]) / (ce["zero"] - ce["clean"])
    assert result["ce_score"] == pytest.approx(score, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_identity_is_exactly_one_and_zero_exactly_nought(seed: int) -> None:
    batches = [made_up(seed), made_up(seed + 100)]
    identity = measure(*({**b, "patched_logits": b["clean_logits"].clone()} for b in batches))
    assert identity["ce_score"] == 1.0
    assert identity["kl"] == 0.0
    zero = measure(*({**b, "patched_logits": b["zero_logits"].clone()} for b in batches))
    assert zero["ce_score"] == 0.0


def test_padding_does_not_matter() -> None:
    batch = made_up()
    padded = {}
    for name, value in batch.items():
        filler = torch.full((C, 4, *value.shape[2:]), 1, dtype=value.dtype)
        padded[name] = torch.cat([value, 0 * filler if name == "attention_mask" else filler], 1)
    assert measure(padded) == measure(batch)


def test_a_batch_is_the_sum_of_its_contexts() -> None:
    batch = made_up()
    whole = measure(batch)
    alone = measure(*({name: value[c : c + 1] for name, value in batch.items()} for c in range(C)))
    assert alone == pytest.approx(whole, rel=1e-12)


def test_tokens_that_were_not_replaced_do_not_count() -> None:
    batch = made_up()
    other = {**batch}
    for name in ("clean_logits", "patched_logits", "zero_logits"):
        other[name] = torch.where(batch["keep"][..., None], batch[name], 99 * torch.rand(C, L, V))
    assert measure(other) == measure(batch)


def test_ruled_out_tokens_add_no_nan() -> None:
    batch = made_up()
    batch["input_ids"] = batch["input_ids"].clamp(min=1)
    for name in ("clean_logits", "patched_logits", "zero_logits"):
        batch[name][..., 0] = -torch.inf
    batch["patched_logits"] = batch["clean_logits"].clone()
    assert measure(batch)["kl"] == 0


def test_refusals() -> None:
    batch = made_up()
    with pytest.raises(InvalidInput, match="0 tokens"):
        measure({**batch, "keep": torch.zeros(C, L, dtype=torch.bool)})
    with pytest.raises(InvalidInput, match="do not fit"):
        measure({**batch, "zero_logits": batch["zero_logits"][:, 1:]})
    with pytest.raises(InvalidInput, match="do not fit"):
        measure({**batch, "input_ids": batch["input_ids"][:, 1:]})
    with pytest.raises(NonFiniteActivations):
        measure({**batch, "patched_logits": torch.full((C, L, V), torch.nan)})


def test_another_over_the_same_contexts_needs_no_zeroed_run() -> None:
    batches = [made_up(seed) for seed in range(3)]
    first = CausalDownstream()
    for batch in batches:
        first.update(**batch)
    second = first.again()
    for batch in batches:
        second.update(**{**batch, "zero_logits": None})
    assert second.result() == first.result()
    with pytest.raises(InvalidInput, match="given again"):
        second.update(**batches[0])
    half = first.again()
    half.update(**{**batches[0], "zero_logits": None})
    with pytest.raises(InvalidInput, match="the same contexts again"):
        half.result()
    with pytest.raises(InvalidInput, match="0 tokens"):
        CausalDownstream().again()
    with pytest.raises(InvalidInput, match="is missing"):
        CausalDownstream().update(**{**batches[0], "zero_logits": None})


def test_zeroing_without_effect_leaves_the_score_undefined() -> None:
    batch = made_up()
    assert measure({**batch, "zero_logits": batch["clean_logits"]})["ce_score"] is None


def test_encoder_against_naive() -> None:
    gen = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(3):
        clean, patched, zero = (torch.randn(2, 5, 7, generator=gen) + 50 for _ in range(3))
        batches.append((clean, patched, zero, torch.rand(2, 5, generator=gen) < 0.6))
    metric, same = EncoderDownstream(), EncoderDownstream()
    for clean, patched, zero, keep in batches:
        metric.update(clean=clean, patched=patched, zero=zero, keep=keep)
        same.update(clean=clean, patched=clean.clone(), zero=zero, keep=keep)
    clean, patched, zero = (torch.cat([b[i][b[3]] for b in batches]).double() for i in range(3))
    spread = ((clean - clean.mean(0)) ** 2).sum()
    result = metric.result()
    assert result["downstream_tokens"] == len(clean)
    assert result["hidden_error"] == pytest.approx(float(((patched - clean) ** 2).sum() / spread), rel=1e-12)
    assert result["hidden_error_zero"] == pytest.approx(float(((zero - clean) ** 2).sum() / spread), rel=1e-12)
    assert same.result()["hidden_error"] == 0.0
    again = metric.again()
    for clean, patched, _, keep in batches[:2]:
        again.update(clean=clean, patched=patched, zero=None, keep=keep)
    with pytest.raises(InvalidInput, match="the same contexts again"):
        again.result()
    again.update(clean=batches[2][0], patched=batches[2][1], zero=None, keep=batches[2][3])
    assert again.result() == result
    with pytest.raises(InvalidInput, match="0 tokens"):
        EncoderDownstream().result()
