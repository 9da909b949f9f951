"""How `make docs` makes a site of these pages: offline, and with warnings for errors.

The pages are the Markdown files of this folder, as they are read anywhere. What is generated goes to `docs/gallery/`
and `build/`, and is not kept: a page for each program of the gallery, with what it prints and draws.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "docs"
sys.path.insert(0, str(HERE / "_site"))
os.environ["IPYTHONDIR"] = str(BUILD / "ipython")  # nobody's own profile
PROFILE = BUILD / "ipython" / "profile_default"
PROFILE.mkdir(parents=True, exist_ok=True)
(PROFILE / "ipython_kernel_config.py").write_text(
    'c.IPKernelApp.log_level = 40  # it warns of talking to this machine\nc.InlineBackend.figure_formats = ["svg"]\n'
)
logging.getLogger("traitlets").setLevel(logging.WARNING)

import gradtrace  # noqa: E402

project = "gradtrace"
author = "the gradtrace authors"
version = release = gradtrace.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "pages"]
exclude_patterns = ["conf.py", "_site"]

source_suffix = {".md": "myst-nb", ".py": "myst-nb"}
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_cache_path = str(BUILD / "notebooks")
nb_execution_timeout = 120
nb_execution_raise_on_error = True
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
default_role = "code"

html_theme = "furo"
html_title = "gradtrace"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses where they are files
copybutton_exclude = ".linenos, .gp, .go"
