"""What the pages say is so: links lead somewhere, commands parse, code runs."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import mfdiag
from mfdiag.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "reports").rglob("*.md")])
GROUP: Any = typer.main.get_command(app)


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for text in re.findall(
            rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            yield page, text


def commands() -> Iterator[tuple[str, str]]:
    """Every `mfdiag ...` of a shell block or in running text, as (page, command)."""
    for language in ("sh", "console"):
        for page, text in blocks(language):
            for line in text.replace("\\\n", " ").splitlines():
                yield page.name, line.removeprefix("$ ").partition("  #")[0].strip()
    for page in PAGES:
        for text in re.findall(r"`(mfdiag [^`\n]*)`", page.read_text(encoding="utf-8")):
            yield page.name, text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = target.partition("#")
        if place.startswith("http"):
            continue
        assert not place or (page.parent / place).exists(), target
        linked = page if not place else page.parent / place
        assert not anchor or anchor in anchors_of(linked), target


def test_theory_that_the_code_cites_exists() -> None:
    known = anchors_of(ROOT / "docs" / "theory.md")
    cited = {
        (path.name, anchor)
        for folder in ("mfdiag", "tests", "benchmarks", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md")
        for anchor in re.findall(r"theory\.md#([\w-]+)", path.read_text(encoding="utf-8"))
    }
    assert {anchor for _, anchor in cited} <= known, {(name, anchor) for name, anchor in cited if anchor not in known}


def test_the_main_path_exists_and_reads_downward() -> None:
    """CONTRIBUTING shows the way of `mfdiag sweep` in at most eight steps, each a file and a function."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## The main path")[2].partition("\n## ")[0]
    steps = re.findall(r"^\| (\d) \| `([^`]+)` \| `(\w+)` \|", text, re.MULTILINE)
    assert [int(number) for number, *_ in steps] == list(range(1, len(steps) + 1)) and 5 <= len(steps) <= 8
    for _, file, function in steps:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
        assert function in {n.name for body in bodies for n in body if isinstance(n, ast.FunctionDef)}, (file, function)
    texts = [(ROOT / file).read_text(encoding="utf-8") for _, file, _ in steps]
    for k, (_, _, function) in enumerate(steps[1:], start=1):
        assert any(re.search(rf"\b{function}\b", text) for text in texts[:k]), f"no step before calls {function}"


def anchors_of(page: Path) -> set[str]:
    """Anchors of a Markdown page: those its headings declare as {#anchor}, else made of the heading's words."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    declared = [re.search(r"\{#([\w-]+)\}$", heading) for heading in headings]
    slugs = [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings]
    return {match[1] if match else slug for match, slug in zip(declared, slugs, strict=True)}


def test_commands_are_those_there_are() -> None:
    found = {(page, line) for page, line in commands() if line.startswith("mfdiag ")}
    assert len(found) > 15
    for page, line in sorted(found):
        name, *arguments = shlex.split(line)[1:]
        if name.isupper() or name.startswith("-"):  # `mfdiag COMMAND --help`
            continue
        assert name in GROUP.commands, (page, line)
        command = GROUP.commands[name]
        given = [word for word in arguments if word.startswith("--")]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(given) <= known | {"--help"}, (page, line)


def test_make_targets_are_those_there_are() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for name in re.findall(r"(?:^|`)make ([a-z]+)(?:`|$|  #)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert name in targets, (page.name, name)


def test_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "readme"}
    for page, text in blocks("python"):
        if page == ROOT / "README.md":
            exec(compile(text, "README.md", "exec"), namespace)
    shown = capsys.readouterr().out
    assert "beta" in shown and "ok" in shown and shown.count("\n") == 4


def test_python_of_the_experiments_page_prints_its_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "reports" / "synthetic" / "README.md"
    monkeypatch.chdir(ROOT)
    namespace: dict[str, Any] = {"__name__": "experiments"}
    for _, text in [block for block in blocks("python") if block[0] == page]:
        exec(compile(text, str(page), "exec"), namespace)
    printed = capsys.readouterr().out
    (_, expected), *_ = [block for block in blocks("text") if block[0] == page]
    assert printed.endswith(expected)
    assert "1.060584  1.015937  1.107192" in printed  # checkerboard, with the anchor


def test_python_of_the_tables_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfdiag.models.networks.mlp import MLP
    from mfdiag.tables import write_table

    frames = mfdiag.measure(MLP(2, 4, 1), "gaussian:2,0,1", tables=["sweep"], samples=64, beta=[0, 1])
    write_table("sweep", frames["sweep"], tmp_path / "mfdiag-results")
    monkeypatch.chdir(tmp_path)
    for page, text in blocks("python"):
        if page.name == "tables.md":
            *lines, last = text.strip().splitlines()
            namespace: dict[str, Any] = {}
            exec("\n".join(lines), namespace)
            assert len(eval(last, namespace)) == 2


def test_the_estimator_of_the_contributing_page_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mfdiag.estimators
    from mfdiag.models.networks.mlp import MLP

    ((_, text),) = [(page, text) for page, text in blocks("python") if page.name == "CONTRIBUTING.md"]
    (tmp_path / "trajectory.py").write_text(text)
    monkeypatch.setattr(mfdiag.estimators, "__path__", [*mfdiag.estimators.__path__, str(tmp_path)])
    frames = mfdiag.measure(
        MLP(2, 4, 1), "gaussian:2,0,1", tables=["variance"], samples=64, estimators=["meanflow", "trajectory"]
    )
    assert set(frames["variance"]["estimator"].dropna()) == {"meanflow", "trajectory"}
    monkeypatch.undo()  # from here on the file is outside of the package
    assert text.count("\n") < 40
    named = [f"{tmp_path / 'trajectory.py'}:ESTIMATOR", "alpha_flow:1"]
    frame = mfdiag.measure(MLP(2, 4, 1), "gaussian:2,0,1", tables=["compare"], samples=64, estimators=named)["compare"]
    variance = frame[(frame["quantity"] == "variance") & (frame["layer"] == "all")].set_index("estimator")["value"]
    assert variance["trajectory"] == pytest.approx(variance["alpha_flow:1"], rel=1e-5)


def test_changelog_tells_of_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text and f"## [{mfdiag.__version__}]" in text


def test_intervals_of_the_experiments_page_are_in_its_tables() -> None:
    """Every "value [low, high]" of reports/synthetic is a row of a `grid` table, or printed by code of the page."""
    from mfdiag.tables import read_table

    folder = ROOT / "reports" / "synthetic"
    grids = [read_table("grid", path.parent) for path in sorted(folder.glob("*/grid.parquet"))]
    rows = [row for grid in grids for row in grid[["value", "ci_low", "ci_high"]].dropna().to_numpy().tolist()]
    ((_, printed),) = [block for block in blocks("text") if block[0] == folder / "README.md"]
    rows += [[float(number) for number in triple] for triple in re.findall(r"\[([\d.]+) ([\d.]+) ([\d.]+)\]", printed)]
    number = r"(-?\d*\.?\d+)"
    triples = re.findall(rf"{number} \[{number}, {number}\]", (folder / "README.md").read_text(encoding="utf-8"))
    assert len(triples) > 50 and len(grids) == 5

    def rounds_to(value: float, text: str) -> bool:
        return abs(value - float(text)) <= 0.5 * 10 ** -len(text.partition(".")[2]) + 1e-9

    for triple in triples:
        assert any(all(map(rounds_to, row, triple)) for row in rows), triple


def test_the_readme_repeats_what_the_reports_say() -> None:
    """Every "value [low, high]" of the README's findings is on the page that the finding links to."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    findings = text.partition("Three findings of trainings")[2].partition("\nTo compare")[0].split("\n- ")[1:]
    pages = [re.search(r"\]\((reports/[\w/]+\.md)\)", finding) for finding in findings]
    assert len(findings) == 3 and all(pages)
    assert "[0.14, 0.71]" in findings[0]
    for finding, page in zip(findings, pages, strict=True):
        assert page is not None
        linked = (ROOT / page[1]).read_text(encoding="utf-8")
        for interval in re.findall(r"-?[\d.]+ \[[^\]]*\d, [^\]]*\d\]", finding):
            assert interval in linked, (page[1], interval)
