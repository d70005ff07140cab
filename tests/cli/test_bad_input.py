"""Bad input is one sentence on standard error and status 2, never a traceback, and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import apportion as ap

from .conftest import Command, Outcome

TRAIN = {
    "k is zero": (["--k", "0"], r"k' = 0"),
    "k is negative": (["--k", "-3"], r"k' = -3"),
    "k is above d_sae": (["--k", "97"], r"k = 97 must be above 0 and at most d_sae = 96"),
    "k is no number": (["--k", "abc"], r"--k = 'abc' is not a list of numbers"),
    "k is nothing": (["--k", ","], r"--k = ','"),
    "k is not whole": (["--k", "2.5", "--recipe", "topk"], r"2\.5.*integer"),
    "k is not a number": (["--k", "nan", "--recipe", "mutual_choice"], r"nan"),
    "recipe unknown": (["--recipe", "tokn_choice"], r"unknown recipe 'tokn_choice'; nearest: 'token_choice'"),
    "recipe empty": (["--recipe", ","], r"--recipe = ',' names nothing"),
    "paper unknown": (
        ["--recipe", "soft_sae", "--paper", "gpt"],
        r"no published settings called 'gpt', only: clip, llm",
    ),
    "paper of a recipe without": (["--paper", "llm"], r"'token_choice' has no published settings .* only: none"),
    "run too short for the paper": (
        ["--recipe", "soft_sae", "--paper", "llm"],
        r"alpha takes 2501 steps and the run",
    ),
    "set without value": (["--set", "clip"], r"not of the form RECIPE\.FIELD=VALUE"),
    "set other recipe": (["--set", "soft_sae.clip=1"], r"names 'soft_sae', which is not in --recipe"),
    "set no such group": (["--set", "token_choice.foo.bar=1"], r"there is no group 'foo'"),
    "set no such key": (["--set", "token_choice.clop=1"], r"unknown key 'clop' \(known keys: .*clip"),
    "set no such deep key": (["--set", "token_choice.lr.pek=1"], r"unknown key 'lr\.pek'"),
    "set below a number": (["--set", "token_choice.clip.x=1"], r"no group 'clip'"),
    "set out of range": (["--set", "token_choice.lr.warmup=2"], r"'lr\.warmup' = 2"),
    "set of another type": (["--set", "token_choice.lr.peak=high"], r"'lr\.peak' = 'high'"),
    "set unknown kind": (["--set", "token_choice.allocator.kind=topp"], r"kind 'topp'; nearest"),
    "set no loss": (["--set", "token_choice.objectives=[]"], r"no loss applies"),
    "prefixes that do not increase": (
        ["--recipe", "matryoshka", "--set", 'matryoshka.objectives=[{"kind":"nested","prefixes":[0.5,0.25]}]'],
        r"the prefixes 0\.5, 0\.25 do not increase; give every one larger",
    ),
    "a prefix above d_sae": (
        ["--recipe", "matryoshka", "--set", 'matryoshka.objectives=[{"kind":"nested","prefixes":[4,97]}]'],
        r"a prefix of 97 features exceeds d_sae = 96; give at most",
    ),
    "prefixes that are no numbers": (
        ["--recipe", "matryoshka", "--set", 'matryoshka.objectives=[{"kind":"nested","prefixes":"all"}]'],
        r"prefixes.* = 'all'",
    ),
    "set NaN": (["--set", "token_choice.lr.peak=NaN"], r"lr\.peak.* = nan: Input should be a finite number"),
    "module unknown": (["--module", "layer.9"], r"no module 'layer\.9'; choose one of: 'encoder\.layer\.0'"),
    "d_sae negative": (["--d-sae", "-5"], r"d_sae' = -5"),
    "d_sae zero": (["--d-sae", "0"], r"d_sae' = 0"),
    "fewer tokens than a batch": (["--tokens", "5"], r"n_tokens = 5 is less than one batch of 128"),
    "batch zero": (["--batch", "0"], r"batch_size' = 0"),
    "batch of one": (["--batch", "1"], r"all 1 rows are equal"),
    "heldout above one": (["--heldout", "1.5"], r"heldout = 1\.5; expected a share"),
    "heldout negative": (["--heldout", "-0.1"], r"heldout = -0\.1; expected a share"),
    "heldout nothing": (["--heldout", "0"], r"'calibrate' .* holds no row"),
    "heldout everything": (["--heldout", "0.9999"], r"training part holds no row"),
    "seed no number": (["--seed", "abc"], r"--seed = 'abc' is not a list of integers"),
    "seed not whole": (["--seed", "1.5"], r"--seed = '1\.5' is not a list of integers"),
    "seed negative": (["--seed", "-1"], r"seed' = -1"),
    "seed too large": (["--seed", str(2**70)], r"seed' = 1180591620717411303424"),
    "lr negative": (["--lr", "-1"], r"--lr = -1\.0 is not a positive number"),
    "lr NaN": (["--lr", "nan"], r"--lr = nan is not a positive number"),
    "lr diverges": (["--lr", "1e30"], r"loss '\w+' is (inf|nan) at step \d+; lower the learning rate"),
    "device unknown": (["--device", "gpu"], r"device 'gpu' cannot be used"),
    "sink unknown": (["--log", "tensorbord"], r"unknown log 'tensorbord'; nearest: 'tensorboard'"),
    "plugin module unknown": (["--plugin", "no_such_rule"], r"--plugin no_such_rule: No module named"),
    "plugin file unknown": (["--plugin", "no_such_rule.py"], r"there is no such file"),
    "calibrate on nothing": (["--calibrate-tokens", "0"], r"calibrate_tokens' = 0"),
}


def assert_refused(outcome: Outcome, words: str) -> None:
    assert outcome.status == 2
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith("apportion: ")
    assert re.search(words, line), line


@pytest.mark.parametrize("case", TRAIN)
def test_train_refuses(command: Command, train: list, case: str) -> None:
    arguments, words = TRAIN[case]
    assert_refused(command(*train, *arguments), words)
    assert not list(Path(train[3]).glob("*/sae.json"))


def test_an_expansion_that_is_no_number_is_refused(command: Command, store: Path, tmp_path: Path) -> None:
    for value in ("nan", "inf"):
        done = command("train", store, "--out", tmp_path, "--expansion", value)
        assert_refused(done, f"--expansion = {value} is not finite")
    assert_refused(command("train", store, "--out", tmp_path, "--expansion", "0"), "d_sae' = 0")


def test_places_that_are_not_what_they_should_be_are_refused(
    command: Command, train: list, store: Path, tmp_path: Path
) -> None:
    assert_refused(command("train", tmp_path / "none", *train[2:]), r"there is no store at .*none")
    (tmp_path / "file").write_text("x")
    assert_refused(command(*train, "--out", tmp_path / "file"), r"cannot write .*file: File exists")
    assert_refused(command("evaluate", tmp_path, "--data", store), r"holds no sae\.json")
    assert_refused(command("evaluate", tmp_path / "file", "--data", store), r"holds no sae\.json")


def test_another_training_in_the_folder_is_refused(command: Command, train: list) -> None:
    assert command(*train).status == 0
    assert_refused(command(*train, "--k", "5"), r"holds a training with other runs; .*another folder")
    assert_refused(command(*train, "--tokens", "2048"), r"other settings")
    assert_refused(command(*train, "--heldout", "0.4"), r"other source")


def test_evaluate_refuses(command: Command, train: list, store: Path, tmp_path: Path) -> None:
    assert command(*train, "--recipe", "topk").status == 0
    run = Path(train[3]) / "topk-k4"
    for arguments, words in (
        (["--data", tmp_path / "none"], r"there is no store"),
        (["--data", store, "--module", "x"], r"no module 'x'"),
        (["--data", store, "--heldout", "2"], r"heldout = 2\.0"),
        (["--data", store, "--limit", "0"], r"limit 0"),
        (["--data", store, "--limit", "-4"], r"limit -4"),
        (["--data", store, "--limit", "1"], r"at least two different rows"),
        (["--data", store, "--plugin", "x.py"], r"there is no such file"),
        (["--data", store, "--model", str(tmp_path / "m")], r"no model folder .* nearest known"),
    ):
        assert_refused(command("evaluate", run, *arguments), words)
    narrow = ap.SAE(ap.SAEConfig.parse({"d_in": 24, "d_sae": 32, "allocator": ap.load(run).config.allocator}, ""))
    ap.save(narrow, tmp_path / "narrow")
    words = r"activations of width 384 and the SAE reads width 24"
    assert_refused(command("evaluate", tmp_path / "narrow", "--data", store), words)
    (run / "sae.safetensors").write_bytes(b"")
    assert_refused(command("evaluate", run, "--data", store), r"sae\.safetensors does not match sae\.json")


def test_what_the_parser_refuses_has_status_2_and_no_traceback(command: Command, train: list) -> None:
    for arguments in (["--bogus", "1"], ["--d-sae", "abc"], ["--precision", "fp8"]):
        done = command(*train, *arguments)
        assert done.status == 2 and done.out == "" and "Traceback" not in done.err
    assert command("trian").status == 2
