"""MkDocs hooks: pages made from documents at the repository's root, and links that follow them."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
    "bench/README.md": "benchmarks.md",
    "bench/results/quality.md": "quality.md",
}
"""Files outside `docs/`, and their names on the site."""
DOWNLOADS = tuple(sorted(path.relative_to(ROOT).as_posix() for kind in ("*.py", "*.ipynb") for path in (ROOT / "examples").glob(kind)))
"""Files outside `docs/` that the site offers as they are."""
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files from outside `docs/`."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=with_site_links((ROOT / source).read_text(), source)))
    for path in DOWNLOADS:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Follow links that leave `docs/`."""
    source = page.file.src_uri
    return markdown if source in PAGES.values() else with_site_links(markdown, f"docs/{source}")


def with_site_links(markdown: str, source: str) -> str:
    """Rewrite the links of `source`, a path from the root, to pages of the site."""
    return LINK.sub(lambda link: link[1] + _site_target(link[2], source) + link[3], markdown)


def _site_target(target: str, source: str) -> str:
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path in PAGES:
        return PAGES[path]
    if path in DOWNLOADS:
        return path
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return target  # MkDocs reports what the site does not have
