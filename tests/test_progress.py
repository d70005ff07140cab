"""Progress: nothing, a bar at a terminal, lines elsewhere."""

from __future__ import annotations

import time

import pytest

from apportion.progress import bar


@pytest.mark.parametrize("shown, lines", [(False, 0), ("lines", 0)])
def test_a_short_job_says_nothing(shown, lines, capsys):
    for _ in bar(range(5), shown=shown, desc="job", unit="step"):
        pass
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_a_long_job_says_a_line_now_and_then_and_at_its_end(monkeypatch, capsys):
    monkeypatch.setattr("apportion.progress.LINE_SECONDS", 0.05)
    with bar(total=30, shown="lines", desc="job", unit="step") as counter:
        for _ in range(30):
            time.sleep(0.01)
            counter.update()
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert 2 <= len(lines) <= 9 and all(line.startswith("job: ") for line in lines)
    assert "\r" not in text and "30/30" in lines[-1] and "step" in lines[-1]
