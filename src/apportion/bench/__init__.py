"""Benchmarks that ``apportion bench`` runs: each measures a cost as a ratio to a floor in the same run.

One file per benchmark. Times are medians of interleaved rounds, and a noisy floor is reported as such.
"""
