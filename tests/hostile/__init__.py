"""Files, processes and options broken on purpose: no traceback, no hang, no silent change of a figure.

``world`` makes a small store, SAEs, a stopped training and scores; ``damage`` breaks bytes and structure,
``craft`` writes senseless contents under right checksums, ``kills`` ends commands at random moments, ``sweeps``
draws options. Every case is a function of its number, so that a failure can be had again. ``python -m
tests.hostile`` runs them all (``make hostile``); ``test_sample.py`` runs a few of each.
"""
