"""Puts pages that lie outside docs/ on the site, and makes links between files of the repository links between pages.

Pages are written so that their links work in the repository, such as `[Contributing](../CONTRIBUTING.md)`. A link to a
file that has no page leads to `repo_url` where that is set; without it, only the text of the link stays.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PAGES = {  # file of the repository -> page of the site
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "reports/synthetic/README.md": "reports/synthetic.md",
    "reports/question/README.md": "reports/question.md",
    "reports/family/README.md": "reports/family.md",
    "reports/transformer/README.md": "reports/transformer.md",
}
FENCE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)[ \t]*$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
IMAGES = {".png", ".svg"}


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages, and the images that they show."""
    root = Path(config.docs_dir).parent
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(root / source)))
        for target in (match[3] for match in LINK.finditer((root / source).read_text(encoding="utf-8"))):
            place = _join(source, target)
            if Path(place).suffix in IMAGES and not place.startswith("docs/"):
                files.append(File.generated(config, place, abs_src_path=str(root / place)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrites relative links, outside of code blocks."""
    own = page.file.src_uri
    source = next((key for key, value in PAGES.items() if value == own), f"docs/{own}")
    known = files.src_uris

    def link(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        path, anchor = target.partition("#")[::2]
        place = _join(source, path)
        page = _page(place)
        if page in known:
            if text.strip("`").endswith(".md"):  # a file's name, which says little on the site
                text = re.search(r"^# (.+)$", known[page].content_string, re.MULTILINE)[1]
            relative = posixpath.relpath(page, posixpath.dirname(own) or ".")
            return f"{mark}[{text}]({relative}{'#' + anchor if anchor else ''})"
        if not (Path(config.docs_dir).parent / place).exists():
            return match[0]  # which a strict build refuses
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{place})" if config.repo_url else text

    parts = FENCE.split(markdown)
    return "".join(part if number % 2 else LINK.sub(link, part) for number, part in enumerate(parts))


def _join(source: str, target: str) -> str:
    """The file of the repository that `target` means in the file `source`."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _page(place: str) -> str:
    """The page that shows a file of the repository."""
    if place in PAGES:
        return PAGES[place]
    inside = place.removeprefix("docs/")
    return inside.removesuffix(".py") + ".md" if inside.startswith("gallery/") and inside.endswith(".py") else inside
