"""The pages of the reference, one a public module, made from the package: a new name has its entry in the next build.

An object has one entry, under the shortest of its public names. Links by its other names lead there too.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = "baal_jax"


class Entry(NamedTuple):
    """What has an entry: ``directive`` documents it, ``others`` are further names of it."""

    name: str
    others: tuple[str, ...]
    directive: str


def modules() -> list[str]:
    """Names of all public modules, the package first."""
    package = importlib.import_module(PACKAGE)
    found = (module.name for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."))
    return [PACKAGE, *sorted(name for name in found if not any(part.startswith("_") for part in name.split(".")))]


def names(module: str) -> Iterator[tuple[str, Any]]:
    """What ``__all__`` of a module lists, or else what it defines."""
    here = importlib.import_module(module)
    own = [name for name, value in vars(here).items() if getattr(value, "__module__", None) == module]
    for name in getattr(here, "__all__", [name for name in own if not name.startswith("_")]):
        if not inspect.ismodule(value := getattr(here, name)):
            yield f"{module}.{name}", value


def _directive(value: Any) -> str:
    if inspect.isclass(value):
        return "class"
    return "function" if inspect.isroutine(inspect.unwrap(value)) else "data"


def entries() -> list[Entry]:
    """One for every public object, in the order of the modules."""
    found: dict[Any, list[str]] = {}
    values = {}
    for name, value in (pair for module in modules() for pair in names(module)):
        is_plain = isinstance(value, bool | int | float | str | tuple) and not hasattr(value, "_fields")
        key = name if is_plain else id(value)
        found.setdefault(key, []).append(name)
        values[key] = value
    shortest = {key: min(several, key=lambda name: name.count(".")) for key, several in found.items()}
    return [
        Entry(shortest[key], tuple(name for name in several if name != shortest[key]), _directive(values[key]))
        for key, several in found.items()
    ]


def _first(module: str) -> str:
    """The first sentence of a module, without links that are relative to it."""
    paragraph = " ".join((importlib.import_module(module).__doc__ or "").split("\n\n")[0].split())
    return re.sub(r":\w+:`~?([^`]*)`", r"``\1``", re.split(r"(?<=[.?]) ", paragraph)[0])


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _heading(text: str, line: str) -> list[str]:
    return [text, line * len(text), ""]


def _table(rows: list[str]) -> list[str]:
    return [".. autosummary::", "   :nosignatures:", "", *(f"   {row}" for row in rows), ""]


def _documented(entry: Entry) -> list[str]:
    option = {"class": "   :members:", "data": "   :no-value:"}.get(entry.directive)
    return [f".. auto{entry.directive}:: {entry.name}", *([option] if option else []), ""]


def page(module: str, everything: list[Entry]) -> str:
    """A module's page: what it says of itself, a table of its names, and the entries that are its own."""
    here = [entry for entry in everything if module in map(_parent, (entry.name, *entry.others))]
    own = [entry for entry in here if _parent(entry.name) == module]
    lines = [*_heading(module, "="), f".. automodule:: {module}", ""]
    if module != PACKAGE:
        lines += _table([entry.name.removeprefix(f"{module}.") for entry in here])
        return "\n".join([*lines, *(line for entry in own for line in _documented(entry))])
    lines += _table([entry.name.removeprefix(f"{module}.") for entry in own])
    for room in sorted({min(map(_parent, entry.others)) for entry in own}):
        lines += [*_heading(room.removeprefix(f"{PACKAGE}."), "-"), f"The rest of it is in :mod:`{room}`.", ""]
        lines += [line for entry in own if min(map(_parent, entry.others)) == room for line in _documented(entry)]
    return "\n".join(lines)


def _contents() -> list[str]:
    rows = [f"   {module.removeprefix(f'{PACKAGE}.')} <{module}>" for module in modules()]
    return [".. toctree::", "   :hidden:", "", *rows, ""]


def pages() -> dict[str, str]:
    """File name → text, the table of the index included."""
    everything = entries()
    rows = [line for module in modules() for line in (f"   * - :mod:`{module}`", f"     - {_first(module)}")]
    table = "\n".join([".. list-table::", "   :widths: auto", "", *rows, "", *_contents()])
    return {f"{module}.rst": page(module, everything) for module in modules()} | {"modules.inc": table}


def write(folder: Path) -> None:
    """Writes what has changed, and deletes pages of modules that are gone."""
    texts = pages()
    for path in (*folder.glob(f"{PACKAGE}*.rst"), *folder.glob("*.inc")):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
