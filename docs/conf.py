"""The documentation's settings: `make docs` builds it with Sphinx."""

import re
import sys
from pathlib import Path

from docutils.parsers.rst.states import Inliner

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gmt_jax import __version__  # noqa: E402

project = "gmt-jax"
author = "The gmt-jax authors"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = f"gmt-jax {release}"
html_show_copyright = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]  # The console lexer ends quotes with the line.
# Docstrings are written with single backticks around code, as in Markdown.
default_role = "code"
autodoc_typehints = "none"  # The signatures' types are spelled out under Args.
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# |g| is a magnitude in our docstrings, not a substitution of reStructuredText: text stays text.
Inliner.dispatch["|"] = lambda _, match, __: (
    match.string[: match.end("start")],
    [],
    match.string[match.end("start") :],
    [],
)


# Pages whose text is that of a file at the root, which the host of the repository shows by itself.
ROOT_PAGES = {"README.md": "index", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}


def _insert_root_page(app: object, docname: str, source: list[str]) -> None:
    """Put a file of the root in place of its name, with its links as seen from docs/."""
    for file, page in ROOT_PAGES.items():
        if page == docname:
            text = (ROOT / file).read_text(encoding="utf-8")
            text = re.sub(r"(?<=\]\()(?!https:|#)([^)]+)", lambda link: _from_docs(link[0]), text)
            source[0] = source[0].replace(file, text, 1)


def _from_docs(link: str) -> str:
    if link in ROOT_PAGES:
        return f"{ROOT_PAGES[link]}.md"
    return link.removeprefix("docs/") if link.startswith("docs/") else f"../{link}"


def setup(app) -> None:  # type: ignore[no-untyped-def]
    app.connect("source-read", _insert_root_page)
