"""``baal-jax COMMAND`` or ``python -m baal_jax COMMAND``: the commands, each loaded when it is used."""

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

from baal_jax._util import __version__

COMMANDS = {
    "study": ("Study", "_study:run", "run strategies × seeds, resumed by cell, and print the statistics"),
    "propose": ("Propose", "_annotation:propose", "write what people should label next, for Label Studio"),
    "ingest": ("Ingest", "_annotation:ingest", "keep the answers of an export of Label Studio"),
    "amend": ("Amend", "_annotation:amend", "add classes to a labelling project, rename them, exclude examples"),
    "export": ("Export", "_annotation:export", "write labels, predictions and the network of a labelling project"),
    "report": ("Report", "_study:write", "write a study as one HTML page, and as figures"),
}
_NEEDS = "What commands use beside the library itself: pip install 'baal_jax[experiments]'"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:  # argparse would print the usage, which is a page
        raise ValueError(f"{message}: see {self.prog} --help")


def main(argv: list[str]) -> int:
    """Runs a command.

    Args:
        argv: its name, and what follows.

    Returns:
        The exit status: 0, 2 where the command says in a line why not, 130 after Ctrl-C.
    """
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print("usage: baal-jax COMMAND …\n\nBayesian active learning for JAX.\n\ncommands:")
        for command, (*_, text) in COMMANDS.items():
            print(f"  {command:10s} {text}")
        print(f"\nWhat a command takes: baal-jax COMMAND --help. The version: baal-jax --version.\n{_NEEDS}")
        return 0
    if name == "--version":
        print(f"baal_jax {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"baal-jax: {name!r} is no command: use one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    options, place, _ = COMMANDS[name]
    try:
        kinds = importlib.import_module("baal_jax._cli._options")
        wanted = _parsed(getattr(kinds, options), f"baal-jax {name}", argv[1:])
        module, _, function = place.partition(":")
        getattr(importlib.import_module(f"baal_jax._cli.{module}"), function)(wanted)
    except (ValueError, TypeError, ImportError, OSError) as error:
        if isinstance(error, TypeError) and not str(error).startswith(("data", "loop", "model", "posterior")):
            raise  # a fault of ours
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"{name}: interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        return 130
    return 0


def _parsed(options: type, prog: str, argv: list[str]) -> Any:
    """An instance of a dataclass, of a command line that its fields and its documentation make."""
    text, _, attributes = (inspect.getdoc(options) or "").partition("\n\nAttributes:\n")
    helps = dict(re.findall(r"^    (\w+): (.*(?:\n     .*)*)", attributes, re.M))
    parser = _Parser(prog, description=text, epilog=_NEEDS, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        kinds = [kind for kind in typing.get_args(hints[field.name]) if kind is not types.NoneType]
        kind = hints[field.name]
        if typing.get_origin(kind) in (types.UnionType, typing.Union):
            (kind,) = kinds
        more: dict[str, Any] = {"help": " ".join(helps[field.name].split()).replace("%", "%%")}
        if typing.get_origin(kind) is tuple:
            kind = typing.get_args(kind)[0]
            more["nargs"] = "*"
        if typing.get_origin(kind) is typing.Literal:
            more["choices"], kind = typing.get_args(kind), str
        more |= {"action": "store_true"} if kind is bool else {"type": kind, "metavar": kind.__name__.upper()}
        if field.default is dataclasses.MISSING:
            more["metavar"] = field.name.upper()
            parser.add_argument(field.name, **more)
            continue
        if kind is not bool and field.default is not None:
            shown = field.default if not isinstance(field.default, tuple) else " ".join(map(str, field.default))
            more["help"] += f" Default: {shown}."
        if "choices" in more:
            del more["metavar"]
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **more)
    found = vars(parser.parse_args(argv))
    return options(**{key: tuple(value) if isinstance(value, list) else value for key, value in found.items()})


def command() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # pyright: ignore  # a code page of Windows has no "−"
    sys.path.insert(0, str(Path.cwd()))  # package.module of the folder it is called in, as with python -m
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    command()
