"""Methods beside one another: the same held-out tokens, equal measured L0, paired by seed."""
