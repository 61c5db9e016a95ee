"""Results of `mfdiag.measure` that show themselves in a notebook: sentences, main rows, and figures by a call each."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pandas as pd

from mfdiag.errors import did_you_mean
from mfdiag.figures import drawable
from mfdiag.measures.run import api
from mfdiag.reporting.findings import findings
from mfdiag.reporting.page import environment
from mfdiag.reporting.rows import measured_rows
from mfdiag.tables.selection import overall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Results", "measure"]

_MOST_ROWS = 12  # of a table; the frame has all


class Results(dict[str, pd.DataFrame]):
    """Tidy tables by name. A notebook shows what they say, and `figure` draws them."""

    @property
    def figures(self) -> list[str]:
        """Names of the figures that the tables have rows for."""
        return [spec.name for spec in drawable(self)]

    def figure(self, name: str) -> Figure:
        """A figure by its name; a notebook shows it.

        Args:
            name: One of `figures`.

        Returns:
            The figure.

        Raises:
            InputError: There is no figure of this name, or the tables have no rows for it.
        """
        specs = {spec.name: spec for spec in drawable(self)}
        if name not in specs:
            raise did_you_mean("figure", name, specs)
        return specs[name].draw(self[specs[name].table])

    def _repr_html_(self) -> str:
        tables = []
        for name, frame in self.items():
            rows = overall(frame)
            if name != "samples" and len(rows):
                table = measured_rows(name, name, rows, _MOST_ROWS)
                tables.append(table._replace(note=f"{len(table.rows)} of {len(frame):,} rows"))
        template = environment().get_template("results.html.j2")
        return template.render(findings=findings(self), tables=tables, figures=self.figures)


@functools.wraps(api.measure)
def measure(*arguments: Any, **options: Any) -> Results:
    """`measures.run.api.measure`, whose signature and docstring it has, with results that show themselves.

    Args:
        *arguments: As there.
        **options: As there.

    Returns:
        Tidy tables by name.
    """
    return Results(api.measure(*arguments, **options))
