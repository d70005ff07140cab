"""One self-contained HTML page about many SAEs: from what they are and a store to a file that opens from disk.

What belongs here: what a person looks at. ``report`` puts the page together; ``survey`` reads what each SAE
does on the held-out tokens, ``tokens`` the text behind them, ``firings`` where a feature is strongest,
``directions`` what lies near a feature and which tokens it raises, ``curves`` the logs of training;
``charts`` (on ``drawing``) and ``catalogue`` say in JSON what is drawn and listed, ``page`` writes it.
Numbers come from ``compare``, ``metrics`` and ``ops``: none is defined here but a feature's gain.

A section is a ``<section>`` of ``templates/page.html``, its data a JSON block of the page, its behaviour one
file in ``static``. Text from data reaches the page through Jinja's escaping or ``textContent``, never as
markup.
"""

from .report import report

__all__ = ["report"]
