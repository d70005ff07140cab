"""What a command says at its end, whatever the end is: one sentence, never a traceback."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from apportion.cli import output
from apportion.errors import InvalidConfig, StorageFailure, without_secrets

from .conftest import Command
from .test_bad_input import assert_refused

APPORTION = [sys.executable, "-m", "apportion"]


class Broken(io.StringIO):
    """Standard output that cannot be written."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("delay", [0.06, 0.4])
def test_an_interrupt_while_libraries_are_imported_is_a_sentence(delay: float) -> None:
    process = subprocess.Popen([*APPORTION, "--help"], stdout=-1, stderr=-1, text=True)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    # Python itself may still be starting on a busy machine, and then the word is its own.
    if "apportion" in err and "File" not in err:
        assert (process.returncode, out) == (130, "")
        assert err == "apportion: interrupted; run the same command again to go on\n"


def test_closed_and_full_streams_are_a_sentence(tmp_path: Path) -> None:
    script = f"{sys.executable} -m apportion evaluate {tmp_path} --data {tmp_path}"
    script = f"{script} >&- 2>&- <&-; echo $?; {APPORTION[0]} -m apportion --help > /dev/full; echo $?"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "2\n2\n"
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_output_that_cannot_be_written_is_refused(
    command: Command, train: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(*train).status == 0
    for number, status in ((errno.ENOSPC, 2), (errno.EBADF, 2), (errno.EPIPE, 141)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Broken(number))
            done = command(*train)
        assert done.status == status and "Traceback" not in done.err
        assert ("cannot write to standard output" in done.err) == (status == 2)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Broken(errno.ENOSPC))
        with pytest.raises(StorageFailure, match="No space left"):
            output.put("result")
        patch.setattr(sys, "stderr", Broken(errno.ENOSPC))
        output.say("nobody can hear this")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (MemoryError(), 2, "memory ran out"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            2,
            "memory ran out",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\n."),
            2,
            "Tried to allocate 2 GiB",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "some/path"), 2, "some/path: Permission denied"),
        (SystemExit(0), 2, "SystemExit: 0"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_ends_a_command_is_said(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, words: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("apportion.cli.evaluate.import_plugins", fail)
    done = command("evaluate", "x", "--data", "y")
    assert done.status == status and done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("apportion: ") and words in line


def test_a_fault_of_our_own_is_not_hidden(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("apportion.cli.evaluate.import_plugins", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        command("evaluate", "x", "--data", "y")


def test_a_plugin_that_leaves_is_no_success(command: Command, train: list, tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    assert_refused(command(*train, "--plugin", tmp_path / "leaves.py"), "ends the process when imported")


def test_no_escape_of_a_name_reaches_the_terminal(command: Command, train: list, tmp_path: Path) -> None:
    odd = tmp_path / "\x1b[31mred\x07\u202e\n"
    arguments = [*train[:3], odd, *train[4:]]
    done = command(*arguments, "--recipe", "topk")
    assert done.status == 0 and "\\x1b[31mred\\x07\\u202e\\n" in done.out
    for outcome in (done, command("evaluate", odd, "--data", odd), command("evaluate", "--bogus\x1b[31m")):
        shown = outcome.out + outcome.err
        assert shown and not any(character in shown for character in "\x1b\x07\u202e")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
@pytest.mark.parametrize("name", ["evaluate", "analyse", "compare", "report", "train"])
def test_a_device_that_is_not_here_is_said_at_once(
    command: Command, train: list, store: Path, tmp_path: Path, name: str
) -> None:
    assert command(*train, "--recipe", "topk").status == 0
    page = ["-o", tmp_path / "page.html"] if name == "report" else []
    arguments = train if name == "train" else [name, train[3], "--data", store, *page]
    for device in ("cuda", "xpu", "meta"):
        assert_refused(command(*arguments, "--device", device), f"device '{device}' cannot be used")


def test_secrets_in_addresses_are_not_repeated() -> None:
    assert (
        without_secrets("s3://KEY:SE@CRET@bucket/x http://h/?sig=SECRET end")
        == "s3://***@bucket/x http://h/?sig=*** end"
    )
    for error in (StorageFailure, InvalidConfig):
        assert "SECRET" not in str(error("cannot read http://u:SECRET@host/v1?api-key=SECRET: no"))


def test_a_page_over_a_device_is_refused_before_any_work(command: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = command("report", tmp_path, "--data", tmp_path, "-o", tmp_path / "pipe")
    assert done.status == 2 and "Traceback" not in done.err
