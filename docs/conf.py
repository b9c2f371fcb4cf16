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


def _readme(app: object, docname: str, source: list[str]) -> None:
    """Put the README in the index, with its links seen from docs/."""
    if docname == "index":
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        text = re.sub(
            r"\]\((?!http|#)(?:docs/)?", lambda m: "](" if "docs/" in m[0] else "](../", text
        )
        source[0] = source[0].replace("README", text, 1)


def setup(app) -> None:  # type: ignore[no-untyped-def]
    app.connect("source-read", _readme)
