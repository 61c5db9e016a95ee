"""Write the list of findings into docs/doctor.md: `python -m mfdiag.diagnosis.docs`."""

from __future__ import annotations

from pathlib import Path

from mfdiag.diagnosis.finding import all_findings
from mfdiag.storage import atomic_write

__all__ = ["END", "PAGE", "START", "between", "listing"]

PAGE = Path("docs/doctor.md")
START, END = "<!-- findings: written by `python -m mfdiag.diagnosis.docs` -->", "<!-- end of findings -->"


def listing() -> str:
    """A Markdown table of every finding."""
    lines = ["| code | it says | judged by | why it matters | source |", "| --- | --- | --- | --- | --- |"]
    for code, finding in sorted(all_findings().items()):
        needs = ", ".join(f"`{quantity}`" for quantity in finding.needs) or "the file, the convention or the log"
        source = finding.source.replace("docs/", "") if "docs/" not in finding.source else _link(finding.source)
        lines.append(f"| `{code}` | {finding.title} | {needs} | {finding.why} | {source} |")
    return "\n".join(lines)


def _link(source: str) -> str:
    """A source whose parts in docs/ are links."""
    parts = source.split("; ")
    return "; ".join(
        f"[{part.removeprefix('docs/')}]({part.removeprefix('docs/')})" if part.startswith("docs/") else part
        for part in parts
    )


def between(text: str, start: str, end: str, content: str) -> str:
    """A text with other content between two markers.

    Args:
        text: The text.
        start: The line before the content.
        end: The line after it.
        content: The content.

    Returns:
        The text.
    """
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n\n{content}\n\n{end}{after}"


if __name__ == "__main__":
    page = between(PAGE.read_text(encoding="utf-8"), START, END, listing())
    with atomic_write(PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
