"""The few numbers of a table that are worth reading first, as rich tables."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from rich.table import Table

from mfdiag.figures.select import overall

__all__ = ["summary"]


def summary(table: str, frame: pd.DataFrame) -> Iterator[Table]:
    """Rows over the whole network and all times, one table per checkpoint."""
    rows = overall(frame)
    if table == "sweep":
        rows = rows[rows["space"] == "gradient"]
    for (checkpoint, step), part in rows.groupby(["checkpoint", "step"], dropna=False, sort=False):
        title = f"{table} of {checkpoint}" + ("" if pd.isna(step) else f", step {int(step):,}")
        yield _sweep(title, part) if table == "sweep" else _plain(title, part)


def _sweep(title: str, part: pd.DataFrame) -> Table:
    """A line per (beta, gamma): variance, bias and MSE at the largest batch."""
    found = Table(title=title, title_justify="left")
    keys = ["beta"] if part["gamma"].nunique() == 1 else ["beta", "gamma"]
    for name in keys:
        found.add_column(name, justify="right")
    largest = part["batch_size"].max()
    wanted = {q: q for q in ("variance", "conditional_variance", "bias2") if (part["quantity"] == q).any()}
    if (part["quantity"] == "mse").any():
        wanted["mse"] = f"MSE, n={largest:,}"
    for title_ in wanted.values():
        found.add_column(title_, justify="right")
    chosen = part[(part["quantity"] != "mse") | (part["batch_size"] == largest)]
    texts = chosen.assign(text=[_number(row) for row in chosen.itertuples()])
    grid = texts.pivot_table(index=["beta", "gamma"], columns="quantity", values="text", aggfunc="first")
    for key, row in grid.iterrows():
        numbers = [f"{value:g}" for value in key[: len(keys)]]  # type: ignore[index]
        found.add_row(*numbers, *(row[name] for name in wanted))
    return found


def _plain(title: str, part: pd.DataFrame) -> Table:
    """A line per row of the table."""
    found = Table(title=title, title_justify="left")
    keys = [k for k in ("estimator", "form", "role", "kappa_kind", "batch_size") if k in part and part[k].nunique() > 1]
    for name in (*keys, "quantity"):
        found.add_column(name)
    found.add_column("value ± std. error", justify="right")
    found.add_column("95 % interval", justify="right")
    found.add_column("status")
    for row in part.itertuples():
        names = ["" if pd.isna(value := getattr(row, k)) else str(value) for k in keys]
        interval = f"{row.ci_low:.4g} … {row.ci_high:.4g}"
        found.add_row(*names, str(row.quantity), _number(row), interval, "" if row.status == "ok" else str(row.status))
    return found


def _number(row: object) -> str:
    value, error = row.value, row.std_error  # type: ignore[attr-defined]
    return f"{value:.4g}" if pd.isna(error) else f"{value:.4g} ± {error:.2g}"
