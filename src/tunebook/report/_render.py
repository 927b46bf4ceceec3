"""Putting the page together: templates with escaping, styles, scripts and data in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tunebook._figures import duration, size
from tunebook._version import __version__
from tunebook.report._figures import clean, count, interval, times

HERE = Path(__file__).parent
CHARTS = HERE / "vendor" / "chart.js" / "chart.umd.min.js"
STYLE = ("report.css",)
SCRIPTS = ("format.js", "charts.js", "table.js", "detail.js", "main.js")


def render(template: str, view: dict[str, Any]) -> str:
    """The whole page. `view` is what the template is given; its ``data`` becomes the page's data block."""
    style, library, script = _style(), _library(), _script()
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(style)}; script-src {_hash(library)} {_hash(script)}"
    )
    given = {
        **view,
        "policy": policy,
        "style": Markup(style),
        "library": Markup(library),
        "script": Markup(script),
        "data_block": Markup(_data(view["data"])),
        "version": __version__,
    }
    return _environment().get_template(template).render(given)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {f.__name__: f for f in (interval, times, duration, size, count)}
    environment.filters["key"] = _breakable
    return environment


def _breakable(name: str) -> Markup:
    """A name, escaped, that may be broken after each of its parts."""
    pieces = re.split(r"(?<=[|,\[])", clean(name))
    return Markup("<wbr>").join(pieces)


def _shown(value: Any) -> Any:
    """Every text that a template prints comes through here; markup is our own."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _library() -> str:
    """Chart.js, without the last line, which tells a debugger where to fetch a map."""
    return CHARTS.read_text(encoding="utf-8").partition("\n//# sourceMappingURL=")[0]


@cache
def _script() -> str:
    """One function around all scripts, so that they share names and leave none behind."""
    parts = [(HERE / "assets" / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return "(() => {\n'use strict';\n" + "\n".join(parts) + "})();\n"


@cache
def _style() -> str:
    return "\n".join((HERE / "assets" / name).read_text(encoding="utf-8") for name in STYLE)


def _hash(text: str) -> str:
    """The text's source expression of a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(data: dict[str, Any]) -> str:
    """JSON for a script element: nothing in it ends the element, or begins another."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
