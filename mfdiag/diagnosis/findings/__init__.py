"""Findings of `mfdiag doctor`: one file each, with a constant FINDING."""
