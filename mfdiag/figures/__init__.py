"""Figures of the tables: one module per figure, one shared style."""

from mfdiag.figures.render import FIGURES, save_figures

__all__ = ["FIGURES", "save_figures"]
