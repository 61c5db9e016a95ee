"""The few numbers of a table that are worth reading first, as rich tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from mfdiag.measures.variance import worst_samples
from mfdiag.numbers import percent
from mfdiag.tables.selection import overall

__all__ = ["summary", "worst"]


def summary(table: str, frame: pd.DataFrame) -> Iterator[Table]:
    """Rows over the whole network and all times, one table per model and setting."""
    rows = overall(frame)
    if table == "sweep":
        rows = rows[rows["space"] == "gradient"]
    settings = [name for name in ("dataset", "proxy", "times") if rows[name].nunique(dropna=False) > 1]
    for _, part in rows.groupby(["checkpoint", "step", *settings], dropna=False, sort=False):
        head = part.iloc[0]
        step = [] if pd.isna(head["step"]) else [f"step {head['step']:,}"]
        title = ", ".join([f"{table} of {head['checkpoint']}", *step, *(f"{name} {head[name]}" for name in settings)])
        if table == "compare":
            yield from _compare(title, part)
        else:
            yield {"sweep": _sweep, "quality": _quality}.get(table, _plain)(title, part)


def worst(samples: pd.DataFrame) -> Table:
    """A line per sample of largest |G|^2, with its share of the sum over all samples; from the table `samples`."""
    rows = worst_samples(samples)
    keys = [name for name in ("checkpoint", "step", "dataset", "proxy", "times") if rows[name].nunique() > 1]
    keys += ["estimator", "index", *([] if rows["label"].isna().all() else ["label"])]
    found = _table("samples with the largest |G|^2")
    for name in keys:
        found.add_column(name)
    for name in ("r", "t", "|G|^2", "share"):
        found.add_column(name, justify="right")
    for row in rows.to_dict("records"):
        names = ["" if pd.isna(row[k]) else str(row[k]) for k in keys]
        found.add_row(*names, *(_digits(row[k]) for k in ("r", "t", "value")), percent(row["share"]))
    return found


def _sweep(title: str, part: pd.DataFrame) -> Table:
    """A line per (beta, gamma): variance, bias and MSE at the largest batch."""
    found = _table(title)
    keys = ["beta"] if part["gamma"].nunique() == 1 else ["beta", "gamma"]
    for name in keys:
        found.add_column(name, justify="right")
    largest = part.loc[part["quantity"] == "mse", "batch_size"].max()
    wanted = {q: q for q in ("variance", "conditional_variance", "bias2") if (part["quantity"] == q).any()}
    if (part["quantity"] == "mse").any():
        wanted["mse"] = f"MSE, n={largest:,}"
    for title_ in wanted.values():
        found.add_column(title_, justify="right")
    chosen = part[(part["quantity"] != "mse") | (part["batch_size"] == largest)]
    texts = chosen.assign(text=[_number(*row) for row in zip(chosen["value"], chosen["std_error"], strict=True)])
    grid = texts.pivot_table(index=["beta", "gamma"], columns="quantity", values="text", aggfunc="first")
    for (beta, gamma), row in zip(grid.index, grid.to_dict("records"), strict=True):
        found.add_row(*[f"{beta:g}", f"{gamma:g}"][: len(keys)], *(row[name] for name in wanted))
    return found


def _quality(title: str, part: pd.DataFrame) -> Table:
    """A line per metric, a column per set of weights and number of steps."""
    found = _table(title)
    found.add_column("metric")
    columns = part[["weights", "nfe"]].drop_duplicates()
    several = columns["weights"].nunique() > 1
    for weights, nfe in columns.itertuples(index=False):
        found.add_column(f"{weights}, NFE {nfe}" if several else f"NFE {nfe}", justify="right")
    for metric, line in part.groupby("metric", sort=False):
        found.add_row(str(metric), *map(_number, line["value"], line["std_error"]))
    return found


def _compare(title: str, part: pd.DataFrame) -> Iterator[Table]:
    """A line per estimator, MSE at the smallest and largest batch; then the gain of the best mixture by batch."""
    sizes = sorted(part.loc[part["quantity"] == "mse_ratio", "batch_size"].unique())
    wanted: dict[tuple[str, Any], str] = {
        ("cost", None): "cost",
        ("variance", None): "variance",
        ("variance_ratio", None): "variance ratio",
        ("conditional_variance_ratio", None): "conditional ratio",
        ("bias2", None): "bias2",
        ("cosine", None): "cosine",
        **{("mse_ratio", n): f"MSE ratio, n={n:,}" for n in dict.fromkeys((sizes[0], sizes[-1]))},
    }
    rows = {
        (row["estimator"], row["quantity"], None if pd.isna(row["batch_size"]) else row["batch_size"]): row
        for row in part.to_dict("records")
    }
    found = _table(title)
    found.add_column("estimator")
    shown = {key: text for key, text in wanted.items() if any(given[1:] == key for given in rows)}
    for text in shown.values():
        found.add_column(text, justify="right")
    for name in part.loc[part["quantity"] == "variance", "estimator"]:
        cells = [rows[name, *key] for key in shown]
        found.add_row(name, *(_number(row["value"], row["std_error"]) for row in cells))
    yield found
    if (gains := part[part["quantity"] == "mixture_gain"]).size:
        yield _plain("best mixture of these, on held-out samples (no batch_size: least variance)", gains)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)


def _plain(title: str, part: pd.DataFrame) -> Table:
    """A line per row of the table."""
    found = _table(title)
    keys = [k for k in ("estimator", "form", "role", "kappa_kind", "batch_size") if k in part and part[k].nunique() > 1]
    for name in (*keys, "quantity"):
        found.add_column(name)
    found.add_column("value", justify="right")
    found.add_column("95 % interval", justify="right")
    found.add_column("status")
    for row in part.to_dict("records"):
        names = ["" if pd.isna(row[k]) else str(row[k]) for k in keys]
        interval = "" if pd.isna(row["ci_low"]) else f"{_digits(row['ci_low'])} … {_digits(row['ci_high'])}"
        status = "" if row["status"] == "ok" else row["status"]
        found.add_row(*names, row["quantity"], _digits(row["value"]), interval, status)
    return found


def _number(value: float, error: float) -> str:
    return _digits(value) if pd.isna(error) else f"{_digits(value)} ± {_digits(error, 2)}"


def _digits(value: float, count: int = 4) -> str:
    """Significant digits without an exponent up to a million: 9086, 767 -> 770, 0.000324."""
    return f"{float(f'{value:.{count}g}'):g}"
