"""The site builds without a warning, holds every page, and asks nothing of the network when it is opened from disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import mfdiag

ROOT = Path(__file__).parents[2]
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}


class Page(HTMLParser):
    """What a page fetches, where its navigation leads, and the ids it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.assets: list[str] = []
        self.navigation: set[str] = set()
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids.add(values.get("id", ""))
        if tag in FETCHED and FETCHED[tag] in values:
            self.assets.append(values[FETCHED[tag]])
        if tag == "a" and "md-nav__link" in values.get("class", ""):
            self.navigation.add(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_no_page_fetches_from_elsewhere(site: Path) -> None:
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]  # which only a server shows
    assert len(pages) > 40
    for path in pages:
        for asset in Page(path).assets:
            parts = urlsplit(asset)
            assert not parts.scheme and not parts.netloc, (path.name, asset)
            assert (path.parent / unquote(parts.path)).exists(), (path.name, asset)
    for path in site.rglob("*.css"):
        for asset in re.findall(r"url\(\s*['\"]?([^'\")]+)", path.read_text(encoding="utf-8")):
            assert asset.startswith("data:") or (path.parent / asset.partition("#")[0]).exists(), (path.name, asset)
    assert (site / "search" / "search_index.js").exists()  # what a page opened from disk searches


def test_every_page_is_in_the_navigation(site: Path) -> None:
    navigation = Page(site / "index.html").navigation
    for path in (ROOT / "docs").rglob("*.md"):
        page = path.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert page in navigation, page
    for path in (ROOT / "docs" / "gallery").glob("*.py"):
        assert f"gallery/{path.stem}.html" in navigation


def test_every_public_name_has_its_entry(site: Path) -> None:
    ids = {name for path in (site / "api").glob("*.html") for name in Page(path).ids}
    names = {f"mfdiag.{name}" for name in mfdiag.__all__ if not name.startswith("__")} - {"mfdiag.estimators"}
    assert names | {"mfdiag.estimators.estimators", "mfdiag.estimators.Needs", "mfdiag.tables.read_table"} <= ids


def test_formulas_are_mathml(site: Path) -> None:
    text = (site / "theory.html").read_text(encoding="utf-8")
    assert text.count("<math") > 100 and "arithmatex" not in text
    assert not re.search(r"\\\(|\\\[|\$\$", text)
