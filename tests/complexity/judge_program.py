"""Judges texts in a process of its own, to be killed: URL CACHE N."""

from __future__ import annotations

import sys
from pathlib import Path

from apportion.complexity import JudgeConfig, Text, Tools

CONCURRENCY = 3


def texts(n: int) -> list[Text]:
    return [Text(str(i), f"text {i}") for i in range(n)]


def config(url: str) -> JudgeConfig:
    return JudgeConfig(
        model="m", url=url, key_env=None, concurrency=CONCURRENCY, per_minute=60_000, backoff=0.001
    )


if __name__ == "__main__":
    url, cache, n = sys.argv[1:]
    for _ in config(url).build(Tools(cache=Path(cache))).score(texts(int(n))):
        pass
