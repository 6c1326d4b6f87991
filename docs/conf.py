"""Sphinx configuration: ``sphinx-build -W --keep-going -b html docs docs/_build/html``.

No network is needed. Pages with code are executed on the CPU, and an error in one of them fails the build. Their
outputs are kept until the page, the package or a library that computes changes, in the folder
``BAAL_JAX_DOCS_CACHE``. ``BAAL_JAX_INTERSPHINX=1`` links to the pages of other projects, and needs a network.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

# Inherited by the notebook kernels: the same numbers on every machine, and no two kernels that share an accelerator.
os.environ["JAX_PLATFORMS"] = "cpu"
# The notebooks compile much and compute little; threads of BLAS in two of them at once wait for each other.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"  # newer ones lack it

sys.path.insert(0, str(Path(__file__).parent))

import _reference

import baal_jax

HERE = Path(__file__).parent
_reference.write(HERE / "reference")

project = "baal_jax"
author = "the baal_jax authors"
release = version = baal_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "jupyter_execute", "**/.ipynb_checkpoints"]
nitpicky = True
# Names of Python and other projects, whose inventories are not at hand.
nitpick_ignore_regex = [("py:exc", ".*"), ("py:class", r"(collections|flax|jax|numpy)\..*")]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3


def _digest():
    """Of all that outputs of a page depend on, the page aside."""
    package = Path(baal_jax.__file__).parent
    found = hashlib.sha256(f"{sys.version} {os.environ['XLA_FLAGS']}".encode())
    for path in sorted([*package.rglob("*.py"), *HERE.glob("*/_[a-z]*.py")]):
        found.update(path.name.encode() + path.read_bytes())
    for name in ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "matplotlib"):
        found.update(f"{name} {importlib.metadata.version(name)}".encode())
    return found.hexdigest()[:16]


_caches = Path(os.environ.get("BAAL_JAX_DOCS_CACHE", HERE / "_build"))
nb_execution_mode = "cache"
nb_execution_cache_path = str(_caches / f"pages-{_digest()}")
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 300
nb_merge_streams = True
for _old in _caches.glob("pages-*"):
    if str(_old) != nb_execution_cache_path:
        shutil.rmtree(_old, ignore_errors=True)

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # records list their fields, without an object for each
napoleon_use_rtype = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes and meanings are in the text
autodoc_preserve_defaults = True
autosummary_generate = False
toc_object_entries_show_parents = "hide"
add_module_names = False

intersphinx_mapping = {}
if os.environ.get("BAAL_JAX_INTERSPHINX") == "1":
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "jax": ("https://docs.jax.dev/en/latest", None),
        "flax": ("https://flax.readthedocs.io/en/stable", None),
        "optax": ("https://optax.readthedocs.io/en/stable", None),
    }

# MathJax is a part of the site: formulas need no other host.
mathjax_path = "mathjax/tex-chtml.js"
_MATHJAX = Path(*importlib.util.find_spec("sphinx-mathjax-offline").submodule_search_locations) / "static" / "mathjax"


def _copy_mathjax(app, exception):
    if exception is None and app.builder.format == "html":
        static = Path(app.outdir) / "_static" / "mathjax"
        shutil.copytree(_MATHJAX / "output" / "chtml", static / "output" / "chtml", dirs_exist_ok=True)
        shutil.copy(_MATHJAX / "tex-chtml.js", static)


def _is_field(member):
    return type(member).__name__ == "_tuplegetter"


def _name_again(app, env):
    """Links by further names of an object lead to its entry, here and from other projects."""
    objects = env.domains["py"].objects
    for entry in _reference.entries():
        for name in entry.others:
            if entry.name in objects:  # not in a build of some pages alone
                objects[name] = objects[entry.name]._replace(aliased=True)


def _find(app, env, node, contnode):
    """A short name leads to the one entry that has it, where it is written beside an object of another module."""
    ends = f".{node.get('reftarget')}"
    found = [entry.name for entry in _reference.entries() if entry.name.endswith(ends)]
    if node.get("refdomain") != "py" or len(found) != 1:
        return None
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, node["reftype"], found[0], node, contnode)


def _back(app, pagename, templatename, context, doctree):
    """From code to its entry: viewcode takes all names of a file for those of one module."""

    def entry(match):
        page, parts = match[1], match[2].split(".")
        names = (f"{page}.{'.'.join(parts[first:])}" for first in range(1, len(parts)))
        return f"reference/{page}.html#{next((name for name in names if name in own), match[2])}"

    own = {name for name, found in app.env.domains["py"].objects.items() if not found.aliased}
    if pagename.startswith("_modules/"):
        context["body"] = re.sub(r"reference/(baal_jax[\w.]*)\.html#(baal_jax[\w.]*)", entry, context["body"])


def setup(app):
    """Leaves out the fields of records, which their docstrings list, and links all names."""
    app.connect("missing-reference", _find)
    app.connect("autodoc-skip-member", lambda app, what, name, member, skip, options: skip or _is_field(member))
    app.connect("env-updated", _name_again)
    app.connect("html-page-context", _back)
    app.connect("build-finished", _copy_mathjax)


html_theme = "sphinx_book_theme"
html_title = f"baal_jax {version}"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sourcelink = False
html_theme_options = {
    "navbar_persistent": [],  # one search: that of the sidebar
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
