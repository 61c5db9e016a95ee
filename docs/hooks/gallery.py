"""Makes a page of each example in docs/gallery/: its docstring, its figure, its code."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each example."""
    for path in sorted(Path(config.docs_dir, "gallery").glob("*.py")):
        files.append(File.generated(config, f"gallery/{path.stem}.md", content=page(path)))
    return files


def page(path: Path) -> str:
    """The page of the example `path`, in Markdown."""
    source = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    title, _, text = docstring.partition("\n")
    title = title.rstrip(".")
    code = source.split('"""', 2)[2].strip()
    figure = f"![{title}]({path.stem}.png)"
    return f'# {title}\n\n{text.strip()}\n\n{figure}\n\n```python title="{path.name}"\n{code}\n```\n'
