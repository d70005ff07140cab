"""Parts of a page in docs/ that a benchmark writes, between two lines that name it."""

from __future__ import annotations

from pathlib import Path


def rewrite(page: Path, name: str, text: str) -> None:
    """Put ``text`` between ``<!-- NAME: ... -->`` and ``<!-- /NAME -->``; exits if the page has no such lines."""
    before = page.read_text()
    begin = before.find(f"<!-- {name}:")
    end = before.find(f"<!-- /{name} -->", begin)
    if begin < 0 or end < 0:
        raise SystemExit(
            f"{page} has no place from '<!-- {name}: ... -->' to '<!-- /{name} -->'; put both lines there"
        )
    head = before[: before.index("-->", begin) + len("-->")]
    page.write_text(f"{head}\n\n{text}\n\n{before[end:]}")
