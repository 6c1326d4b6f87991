"""Sphinx configuration: ``sphinx-build -W --keep-going -b html docs docs/_build/html``.

The notebooks are executed in every build, on the CPU, and an error in one of them fails the build. No network needed.
"""

import os

# Inherited by the notebook kernels: the same numbers on every machine, and no two kernels that share an accelerator.
os.environ["JAX_PLATFORMS"] = "cpu"
# The notebooks compile much and compute little.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import baal_jax

project = "baal_jax"
release = version = baal_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build", "jupyter_execute", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 300
nb_merge_streams = True

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # records list their fields without a second object for each
napoleon_use_rtype = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes and meanings are in the text
autodoc_preserve_defaults = True


def setup(app):
    """Leaves out the fields of records, which their docstrings list."""
    app.connect("autodoc-skip-member", lambda app, what, name, member, skip, options: skip or _is_field(member))


def _is_field(member):
    return type(member).__name__ == "_tuplegetter"


html_theme = "sphinx_book_theme"
html_title = "baal_jax"
html_show_copyright = False
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
