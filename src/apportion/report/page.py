"""The HTML file: one template, its style and behaviour, plotly, and the data, all in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import MissingExtra

HERE = Path(__file__).parent
SCRIPTS = ("charts.js", "text.js", "features.js")
"""Files of ``static`` that make up the page's script, after ``page.js``."""

_UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
_MISSING = "a report needs plotly and Jinja2; install apportion[report]"


def check_installed() -> None:
    """Raises ``MissingExtra`` without plotly or Jinja2."""
    try:
        import jinja2  # noqa: F401
        import plotly  # noqa: F401
    except ImportError:
        raise MissingExtra(_MISSING) from None


def render(**content: Any) -> bytes:
    """The page as UTF-8.

    Args:
        content: what ``templates/page.html`` names; strings are escaped, and of ``blocks``, a mapping from ids to
            data, each becomes a JSON block.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json"] = lambda data: Markup(safe_json(data))
    static = HERE / "static"
    text = environment.get_template("page.html").render(
        style=Markup((static / "report.css").read_text()),
        script=Markup("\n".join((static / name).read_text() for name in ("page.js", *SCRIPTS))),
        plotly=Markup(_plotly()),
        **content,
    )
    return text.encode(errors="replace")


def safe_json(data: Any) -> str:
    """``data`` as JSON that ends no script element and opens no comment, whatever its strings hold.

    >>> safe_json({"a": "</script>"})
    '{"a":"\\\\u003c/script\\\\u003e"}'
    """
    return json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)


def _plotly() -> str:
    """plotly's own script; kept as text until the page has been painted, so that it must not end its element."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
