"""Settings of the site: ``make docs`` builds it from these pages and from the docstrings, without a network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "bpfree"
author = "The bpfree developers"
html_title = "bpfree"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "command_help",
    "mathml",
]
root_doc = "index"
exclude_patterns = ["_extensions"]
highlight_language = "text"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "pydata_sphinx_theme"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["bpfree.css"]
html_sidebars = {"index": [], "tutorial": [], "concepts": [], "examples": []}  # pages without a section of their own
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "navigation_with_keys": False,
    "header_links_before_dropdown": 6,
    "navbar_end": ["theme-switcher"],
    "show_prev_next": True,
    "show_toc_level": 2,
    "secondary_sidebar_items": {"measured": [], "support": [], "**": ["page-toc"]},  # these have the widest tables
    "footer_start": ["copyright"],
    "footer_end": [],
}
project_copyright = "The bpfree developers, Apache-2.0"

# The site is built where it need not be installed.
autodoc_mock_imports = ["transformers"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_use_ivar = True

# A reference that leads nowhere is an error. Other packages' names have no pages here, and neither have inner modules.
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"(torch|nn|collections|typing|os)\..*|Tensor|PipelineStage"),
    ("py:class", r"TapChoice|SampleAxes|AlternateOrder|Projector|Key|Observation"),
    ("py:class", r"bpfree\.(?!errors\.|pipeline\.[A-Z])([a-z_]+\.)+[A-Z]\w*"),
]
