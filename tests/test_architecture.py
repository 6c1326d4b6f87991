"""The floor plan holds: imports point down, the core does not know the edge, every public name is documented."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import baal_jax

ROOT = Path(baal_jax.__file__).parent
FLOORS = {
    "typing": 0,
    "_numerics": 0,
    "_linalg": 0,
    "_checks": 0,
    "_random": 0,
    "_files": 0,
    "_environment": 0,
    "_variational": 0,
    "pool": 1,
    "models": 1,
    "losses": 1,
    "_averaging": 1,
    "_batches": 1,
    "_layers": 1,
    "kernels": 1,
    "layers": 1,
    "augmentation": 1,
    "metrics": 1,
    "semi_supervised": 1,
    "results": 1,
    "statistics": 2,
    "stopping": 2,
    "training": 2,
    "prediction": 2,
    "heuristics": 2,
    "features": 2,
    "calibration": 3,
    "posteriors": 3,
    "predictive": 3,
    "selection": 3,
    "loop": 4,
    "_run": 5,
    "study": 6,
    "annotation": 6,
}
EDGE = {"data", "reporting", "checkpoint", "report", "commands", "__main__"}
FOR_THE_EDGE = {"results", "statistics"}  # NumPy and files: what a person looks at is made of them
FOLDERS = (
    "heuristics",
    "selection",
    "posteriors",
    "data",
    "metrics",
    "statistics",
    "report",
    "study",
    "calibration",
    "annotation",
)
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def _part(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "baal_jax":
            below = node.module.split(".")[1:]
            yield from below[:1] or [alias.name for alias in node.names]


def test_every_module_has_a_place():
    assert {_part(path) for path in FILES} == {*FLOORS, *EDGE}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_never_to_the_edge(path):
    here = _part(path)
    for other in _imported_parts(path):
        if other == here:
            continue
        if here == "commands" or (here, other) == ("report", "reporting"):
            continue  # commands are what stands above everything
        if here in EDGE:
            assert FLOORS[other] == 0 or other in FOR_THE_EDGE, f"{here} imports {other}"
        else:
            assert other not in EDGE, f"{here} imports {other}"
            assert FLOORS[other] < FLOORS[here] or FLOORS[other] == 0 == FLOORS[here], f"{here} imports {other}"


def test_no_file_is_longer_than_five_hundred_lines():
    home = Path(__file__).parents[1]
    paths = [path for folder in ("baal_jax", "experiments", "tests") for path in (home / folder).rglob("*.py")]
    long = {path.name: n for path in paths if (n := len(path.read_text().splitlines())) > 500}
    assert len(paths) > len(FILES)
    assert not long


def test_importing_the_package_loads_jax_and_numpy_alone():
    heavy = [
        "flax",
        "optax",
        "orbax",
        "tensorflow_datasets",
        "matplotlib",
        "sklearn",
        "chex",
        "tqdm",
        "tyro",
        "scipy.stats",
    ]
    code = f"import sys, baal_jax; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def _public():
    modules = [baal_jax, *(getattr(baal_jax, name) for name in FOLDERS)]
    found = {(module.__name__, name): getattr(module, name) for module in modules for name in module.__all__}
    for name in (
        "pool",
        "losses",
        "stopping",
        "reporting",
        "training",
        "models",
        "augmentation",
        "checkpoint",
        "features",
        "kernels",
        "layers",
        "predictive",
        "results",
        "semi_supervised",
        "selection.sets.feature_maps",
        "selection.sets.selectors",
        "selection.sets.transforms",
    ):
        module = importlib.import_module(f"baal_jax.{name}")
        for item, value in vars(module).items():
            if not item.startswith("_") and getattr(value, "__module__", None) == module.__name__:
                found[module.__name__, item] = value
    return found


@pytest.mark.parametrize("name", _public(), ids=".".join)
def test_every_public_name_is_documented(name):
    value = _public()[name]
    if name[1] == "REGISTRY":
        return
    assert inspect.getdoc(value)
    if inspect.isfunction(inspect.unwrap(value)):
        doc, parameters = inspect.getdoc(value), inspect.signature(value).parameters
        undocumented = [p for p in parameters if f"\n    {p}: " not in doc and f"\n    {p}:" not in doc]
        short = len(doc.splitlines()) == 1  # one-line accessors say it all
        assert short or not undocumented


@pytest.mark.parametrize("family", ["heuristics", "selection", "posteriors"])
def test_registries_hold_public_names(family):
    module = getattr(baal_jax, family)
    assert set(module.REGISTRY) <= set(module.__all__)
    assert all(getattr(module, name) is value for name, value in module.REGISTRY.items())


def test_no_pickle_and_no_global_numpy_random_state():
    for path in FILES:
        tree = ast.parse(path.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert "pickle" not in names
        assert "np.random.seed" not in path.read_text()
