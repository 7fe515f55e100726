"""Equations as MathML, made by docutils when the site is built: no script, no font and no network shows them."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

_log = logging.getLogger(__name__)

# docutils sets the index of an accented letter below the letter, as a limit of a sum.
_INDEX_BELOW = re.compile(
    r"<munderover>\s*(<mi>[^<]*</mi>)\s*(<mi>[^<]*</mi>|<mrow>(?:(?!<mrow>).)*?</mrow>)"
    r"\s*(<mo[^>]*>[^<]*</mo>)\s*</munderover>",
    re.DOTALL,
)
_INDEX_BESIDE = r'<msub><mover accent="true">\1\3</mover>\2</msub>'


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="equation">{_mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, *, as_block: bool) -> str:
    try:
        return _INDEX_BELOW.sub(_INDEX_BESIDE, str(tex2mathml(node.astext(), as_block=as_block)))
    except MathError as error:
        # A warning is an error of the strict build.
        _log.warning("no MathML for %r: %s", node.astext(), error, location=node)
        return ""
