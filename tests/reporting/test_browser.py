"""report.html as a reader has it: in headless Chromium, on a phone, a laptop and a large screen, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doctor_json import DOCTOR
from figure_tables import TABLES

from mfdiag.figures import save_figures
from mfdiag.reporting import write_page

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, see .ci/run")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python, see .ci/run")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium; .ci/run installs it")

STEPS = {"variance": (1000, 2000, 12_000), "coefficient": (1000, 2000, 12_000), "sweep": (), "quality": (), "times": ()}
"""Tables of the page -> checkpoints; the others are of one checkpoint. axe takes seconds for ten thousand cells."""
WIDTHS = (400, 1000, 1600)
SMALLEST_FONT = 11  # pixels


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section."""
    folder = tmp_path_factory.mktemp("report")
    tables = {name: TABLES[name](steps or (12_000,)) for name, steps in STEPS.items()}
    (folder / "doctor.json").write_text(json.dumps(DOCTOR), encoding="utf-8")
    tables["sweep"] = tables["sweep"][tables["sweep"]["beta"].isin([0, 0.5, 1]) | tables["sweep"]["beta"].isna()]
    page = write_page(tables, save_figures(tables, folder, kinds=["svg"]), folder)
    assert page.stat().st_size < 5e6
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Callable[[int, str], Any]]:
    """opened(width, scheme): the page; at the end, nothing was requested and nothing was written to the console."""
    contexts, messages, requests = [], [], []

    def open_page(width: int = 1000, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert messages == [] and set(requests) == {report.as_uri()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_and_is_accessible(opened: Callable[..., Any], width: int, scheme: str) -> None:
    page = opened(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width, "only figures and tables scroll"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 24, 28)")
    page.locator("#rows-layers summary").click()
    violations = axe.Axe().run(page, context=SEEN).response["violations"]
    assert [
        (one["id"], one["nodes"][0]["html"]) for one in violations if one["impact"] in ("serious", "critical")
    ] == []
    assert page.evaluate(SMALL_TEXTS, SMALLEST_FONT) == []


def test_a_phone_shows_the_legend_of_a_figure_of_many_panels(opened: Callable[..., Any]) -> None:
    gaps = opened(400).evaluate(
        """[...document.querySelectorAll("[id$=figure-legend]")].map(
          legend => legend.getBoundingClientRect().left - legend.ownerSVGElement.getBoundingClientRect().left)"""
    )
    assert gaps and all(0 <= gap < 20 for gap in gaps)


SEEN = {"exclude": [["svg > *"], ["details:not([open]) > div"]]}  # a drawing is one picture; axe skips what is closed
SMALL_TEXTS = """least => {
  document.querySelectorAll("details").forEach(one => { one.open = true; });
  const holdsText = one => [...one.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
  const texts = [...document.querySelectorAll("body *")].filter(one => !one.closest("script, .tips") && holdsText(one));
  return texts.filter(one => {
    const drawing = one.ownerSVGElement;
    const scale = drawing ? drawing.getBoundingClientRect().width / drawing.viewBox.baseVal.width : 1;
    return parseFloat(getComputedStyle(one).fontSize) * scale < least;
  }).map(one => one.textContent);
}"""


def column(page: Any, table: str, heading: str) -> list[str]:
    """The texts of the rows that are shown, below a heading."""
    return page.locator(table).evaluate(
        """(table, heading) => {
          const place = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === heading);
          return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[place].textContent);
        }""",
        heading,
    )


def numbers(texts: list[str]) -> list[float]:
    return [
        float(text.replace(",", "").replace("−", "-").replace("∞", "inf")) for text in texts if text not in ("", "?")
    ]


def test_a_heading_sorts_by_number_and_back(opened: Callable[..., Any]) -> None:
    page = opened()
    page.locator("#table-sweep summary").click()
    before = column(page, "#table-sweep table", "value")
    button = page.locator("#table-sweep th button", has_text="value")
    button.click()
    upward = numbers(column(page, "#table-sweep table", "value"))
    assert upward == sorted(numbers(before)) and upward != numbers(before)
    button.press("Enter")
    assert numbers(column(page, "#table-sweep table", "value")) == upward[::-1]
    assert page.locator("#table-sweep th[aria-sort=descending]").inner_text().startswith("value")
    sizes = page.locator("#table-sweep th button", has_text="batch size")
    sizes.click()
    assert numbers(column(page, "#table-sweep table", "batch size")) == sorted(
        numbers(column(page, "#table-sweep table", "batch size"))
    ), "1,000 comes after 256"


def test_a_filter_keeps_the_rows_that_hold_every_word(opened: Callable[..., Any]) -> None:
    page = opened()
    page.locator("#table-sweep summary").click()
    every = len(column(page, "#table-sweep table", "quantity"))
    page.locator("#table-sweep input").fill("MSE 4,096")
    assert set(column(page, "#table-sweep table", "quantity")) == {"mse"}
    assert set(column(page, "#table-sweep table", "batch size")) == {"4,096"}
    left = len(column(page, "#table-sweep table", "quantity"))
    assert page.locator("#table-sweep output").inner_text() == f"{left} of {every} rows" and 0 < left < every
    page.locator("#table-sweep input").fill("")
    assert len(column(page, "#table-sweep table", "quantity")) == every


def test_curves_show_their_values_and_figures_lead_to_their_rows(opened: Callable[..., Any]) -> None:
    page = opened()
    page.locator("#bias_variance .tips circle").first.hover()
    assert page.locator("#tip").inner_text() == "total at 0: 700 [658, 742]"
    page.locator("#beta_map .tips polygon").first.hover()
    assert page.locator("#tip").inner_text().startswith("r in [0, 0.2], t in [0, 0.2]: ")
    for name in page.locator("figure").evaluate_all("all => all.map(one => one.id)"):
        assert page.locator(f"#rows-{name}").get_attribute("open") is None
        page.locator(f"#{name} figcaption a", has_text="Rows").click()
        page.locator(f"#rows-{name} tbody tr").first.wait_for()
        assert "mfdiag " in page.locator(f"#{name} figcaption code").inner_text()
        label = page.locator(f"#{name} svg").get_attribute("aria-label")
        assert len(label.split()) > 8 and label.endswith(".")


def test_the_verdict_of_the_doctor_comes_first(opened: Callable[..., Any]) -> None:
    page = opened()
    headings = page.locator("h2").all_inner_texts()
    assert headings[:2] == ["Verdict", "What was measured"]
    assert headings[2:7] == [
        "Is it noisy?",
        "Where?",
        "What helps?",
        "What does it cost?",
        "How good are the samples?",
    ]
    verdict = page.locator("#verdict").inner_text()
    for text in (
        "Something is wrong: the tangent is noisy.",
        "The tangent <causes> most of the noise",
        "variance: 700 [640, 760] (t in [0.4, 0.6]); expected below 300",
        "variance ratio: 0.630 [0.580, 0.690]",
        "Cost: one forward pass per step",
    ):
        assert text in verdict
    assert page.locator("nav a").count() == len(headings)
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1


def test_a_report_prints_on_few_pages(report: Path, tmp_path: Path) -> None:
    paper = tmp_path / "report.pdf"
    command = [str(CHROMIUM), "--headless", "--no-sandbox", f"--print-to-pdf={paper}", report.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())) <= 8
