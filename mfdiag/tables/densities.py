"""The densities of table `times` as files that `--times density:FILE` and training specifications read."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import yaml

from mfdiag.storage import atomic_write

__all__ = ["write_densities"]

_MODEL = ["checkpoint", "checkpoint_sha256", "dataset", "proxy", "times"]
_EDGES = ["r_low", "r_high", "t_low", "t_high"]


def write_densities(frame: pd.DataFrame, out: Path) -> list[Path]:
    """Writes `out/times-NAME.yaml` for each model of table `times`, atomically, and returns the paths.

    NAME is the checkpoint's, or its folder's if the file is called model; equal names are numbered. Raises InputError
    if a file cannot be written.
    """
    texts: dict[Path, str] = {}
    for _, rows in frame.groupby(_MODEL, dropna=False, sort=False):
        name = re.sub(r"[^\w.+-]+", "_", _name(Path(rows["checkpoint"].iloc[0])))
        names = [name, *(f"{name}-{number}" for number in range(2, len(texts) + 2))]
        path = next(path for path in (out / f"times-{name}.yaml" for name in names) if path not in texts)
        texts[path] = _text(rows, path)
    for path, text in texts.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(texts)


def _name(checkpoint: Path) -> str:
    return checkpoint.parent.name if checkpoint.stem == "model" and checkpoint.parent.name else checkpoint.stem


def _text(rows: pd.DataFrame, path: Path) -> str:
    cells = rows[rows["pairs"] != "all"].pivot(index=["pairs", *_EDGES], columns="quantity", values="value")
    cells = cells.reset_index().sort_values(["pairs", "r_low", "t_low"])  # apart before diagonal
    apart = cells[cells["pairs"] == "apart"]
    first = rows.iloc[0]
    content = {
        "times": first["times"],
        "bins": [apart["r_low"].nunique(), apart["t_low"].nunique()],
        "cells": [
            {
                "r": [cell["r_low"], cell["r_high"]],
                "t": [cell["t_low"], cell["t_high"]],
                "trained": cell["trained_share"],
                "drawn": cell["drawn_share"],
            }
            for cell in cells.to_dict("records")
        ],
    }
    head = (
        f"# (r, t) for the least variance of the gradient of {first['estimator']} at {first['checkpoint']}, found by\n"
        f"# `mfdiag times`; train with `times: density:{path.name}`. Each cell's weight is trained / drawn.\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
