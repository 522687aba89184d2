"""Settings of the documentation site; `make docs` builds it."""

import sys
from pathlib import Path

from pygments.lexers import TextLexer

import wsss_affinity

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "wsss-affinity"
author = copyright = "The wsss-affinity authors"
release = version = wsss_affinity.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "config_reference"]
exclude_patterns = ["_ext"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
# headings down to this level can be linked to
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
# one signature can be longer than a line
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
# of random_walk; they are prose
napoleon_custom_sections = ["Methods", "Images of different sizes"]

nitpicky = True
# names of other projects: without a network there is nothing to look them up in
nitpick_ignore_regex = [
    ("py:.*", r"(collections|nn|numpy|omegaconf|pathlib|PIL|pytorch_lightning|torch)\..*"),
    ("py:class", "DictConfig|tqdm"),
    # on the page of the data, but under the name of their module
    ("py:class", "Transform|ReadTarget|FinishTarget"),
]

html_theme = "furo"
html_title = f"wsss-affinity {release}"
html_copy_source = False
html_show_sphinx = False


def setup(app):
    """Called by Sphinx."""
    # GitHub colours such blocks, Pygments does not know them
    app.add_lexer("csv", TextLexer)
    app.connect("autodoc-process-signature", _plain_factories)


def _plain_factories(app, what, name, obj, options, signature, returns):
    """Write the default of a dataclass's dict as Python, so that Sphinx can read the line."""
    return signature and signature.replace("<factory>", "{}"), returns
