"""report.html: whole, self-contained, and of the same numbers as the tables."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from doctor_json import DOCTOR
from figure_tables import TABLES
from markupsafe import escape

from mfdiag import InputError, measure
from mfdiag.figures import save_figures
from mfdiag.models.networks.mlp import MLP
from mfdiag.numbers import significant
from mfdiag.reporting import findings, write_page


class Page(HTMLParser):
    """Collects identifiers, references and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.cells: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        source = found.get("src") or found.get("href") or found.get("xlink:href") or "#"
        if not source.startswith(("#", "data:")):
            self.outside.append(source)
        self._in_cell = tag == "td"
        if self._in_cell:
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return measure(MLP(2), "gaussian:2,0,1", samples=300, bins=(2, 2), beta=(0.0, 1.0))


def test_page_holds_everything(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    figures = save_figures(tables, tmp_path)
    page = Page(write_page(tables, figures, tmp_path).read_text(encoding="utf-8"))
    assert page.outside == []
    assert len(set(page.ids)) == len(page.ids)  # drawings do not share names
    assert {path.stem for path in figures} <= set(page.ids)
    variance = tables["variance"]
    chosen = variance[(variance["layer"] == "all") & variance["t_low"].isna() & (variance["quantity"] == "variance")]
    assert len(chosen) == 2
    for value in chosen["value"]:
        assert significant(value) in page.cells


def test_names_from_outside_are_escaped(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    hostile = {name: frame.assign(checkpoint="<script>alert(1)</script>") for name, frame in tables.items()}
    text = write_page(hostile, [], tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_the_verdict_of_the_doctor_stands_before_the_questions(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    (tmp_path / "doctor.json").write_text(json.dumps(DOCTOR), encoding="utf-8")
    text = write_page(tables, [], tmp_path).read_text(encoding="utf-8")
    places = [
        text.index(part) for part in (DOCTOR["verdict"], "&lt;causes&gt;", "700 [640, 760]", '<section id="noise">')
    ]
    assert places == sorted(places)
    assert DOCTOR["noise"] in text and 'class="box verdict critical"' in text
    several = {**DOCTOR, "checkpoints": [DOCTOR, {"verdict": "It is fine.", "healthy": True, "checkpoint": "b.pt"}]}
    several["course"] = [{"quantity": "velocity_error", "sentence": "The velocity error rises between steps 1 and 2."}]
    (tmp_path / "doctor.json").write_text(json.dumps(several), encoding="utf-8")
    text = write_page(tables, [], tmp_path).read_text(encoding="utf-8")
    assert "All 2 checkpoints" in text and "It is fine." in text and several["course"][0]["sentence"] in text
    assert "not measurable" in text, "an effect that spans orders of magnitude"
    least = {"verdict": "Nothing to do.", "healthy": True, "findings": [], "not_checked": []}
    (tmp_path / "doctor.json").write_text(json.dumps(least), encoding="utf-8")
    assert "Nothing to do." in write_page(tables, [], tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"findings": [{"code": "a", "title": "b"}]}, "findings.0.severity"),
        ({"verdict": None}, "verdict: It should"),
    ],
)
def test_a_verdict_in_another_format_is_refused(
    tables: dict[str, pd.DataFrame], tmp_path: Path, change: dict[str, object], problem: str
) -> None:
    (tmp_path / "doctor.json").write_text(json.dumps(DOCTOR | change), encoding="utf-8")
    with pytest.raises(InputError, match=f"{problem}.*Run `mfdiag doctor` again"):
        write_page(tables, [], tmp_path)


def test_without_a_doctor_the_sentences_that_matter_come_first(tmp_path: Path) -> None:
    made = {name: make() for name, make in TABLES.items() if name not in ("grid", "training")}
    text = write_page(made, [], tmp_path).read_text(encoding="utf-8")
    verdict = text.partition('id="verdict"')[2].partition("</section>")[0]
    assert 1 <= verdict.count('class="box"') <= 3 and "The largest 1 % of samples carry" in verdict
    ((_, sentences),) = findings(made)
    assert len(sentences) == 5 and all(str(escape(sentence.partition(". ")[0])) in text for sentence in sentences)


def test_a_question_without_an_answer_has_the_command_that_answers_it(
    tables: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    text = write_page({"variance": tables["variance"]}, [], tmp_path).read_text(encoding="utf-8")
    assert "mfdiag quality CHECKPOINT --out DIR" in text and "mfdiag variance CHECKPOINT" not in text
    assert 'id="samples"' not in text, "one section holds all questions without an answer"
    answered = write_page({name: make() for name, make in TABLES.items() if name != "grid"}, [], tmp_path)
    assert 'id="open"' not in answered.read_text(encoding="utf-8")


def test_logged_steps_and_the_summary_of_a_grid_are_no_checkpoints(tmp_path: Path) -> None:
    made = {"training": TABLES["training"](tuple(range(1000, 51_000, 1000))), "grid": TABLES["grid"]()}
    text = write_page(made, [], tmp_path).read_text(encoding="utf-8")
    overview = text.partition('id="subjects"')[2].partition("</table>")[0]
    assert overview.count("<tr>") == 1 + 2 and overview.count("50,000") == 2, "a model of each data set"


def test_a_long_command_is_folded(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    models = [f"data=two_moons,seed={seed}/model.safetensors" for seed in range(40)]
    entry = {
        "command": ["mfdiag", "variance", *models],
        "finished": "2026-01-01T00:00:00",
        "seconds": 1.0,
        "hardware": {},
        "versions": {},
        "specification": {},
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"variance": entry}), encoding="utf-8")
    text = write_page(tables, [], tmp_path).read_text(encoding="utf-8")
    command = text.partition('id="command-variance"')[2]
    assert "<details><summary>" in command and models[-1] in command.partition("</summary>")[2]


def test_many_checkpoints_are_one_table_and_a_course(tmp_path: Path) -> None:
    steps = tuple(range(1000, 21_000, 1000))
    made = {name: TABLES[name](steps) for name in ("variance", "coefficient")}
    made = {name: pd.concat([frame, frame.assign(dataset="two_moons")]) for name, frame in made.items()}
    figures = save_figures(made, tmp_path, kinds=["svg"])
    page = write_page(made, figures, tmp_path)
    text = page.read_text(encoding="utf-8")
    overview = text.partition('id="subjects"')[2].partition("</table>")[0]
    assert overview.count("<tr>") == 1 + 40 and "two_moons" in overview
    assert {"variance_course", "coefficient_course"} <= set(Page(text).ids)
    assert text.count("In a batch of") == 2, "the last checkpoint of each data set"
    assert page.stat().st_size < 5e6
