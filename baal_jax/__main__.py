"""``python -m baal_jax COMMAND``: the commands, each loaded when it is used."""

import importlib
import sys

from baal_jax._util import checks

COMMANDS = {
    "study": ("baal_jax._cli._study:Study:run", "run strategies × seeds, resumed by cell, and print the statistics"),
    "propose": ("baal_jax._cli._annotation:Propose:propose", "write what people should label next, for Label Studio"),
    "ingest": ("baal_jax._cli._annotation:Ingest:ingest", "keep the answers of an export of Label Studio"),
    "report": ("baal_jax._cli._study:Report:write", "write a study as one HTML page, and as figures"),
}


def main(argv: list[str]) -> int:
    """Runs a command.

    Args:
        argv: its name, and what follows.

    Returns:
        The exit status: 0, 1 where the command says why not, 130 after Ctrl-C, 2 where there is no such command.
    """
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print("usage: python -m baal_jax COMMAND …\n\nBayesian active learning for JAX.\n\ncommands:")
        for command, (_, text) in COMMANDS.items():
            print(f"  {command:10s} {text}")
        print("\nWhat a command takes: python -m baal_jax COMMAND --help")
        return 0
    if name not in COMMANDS:
        print(f"baal_jax: {name!r} is no command: use one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, arguments, function = COMMANDS[name][0].split(":")
    try:
        command = importlib.import_module(module)
        tyro = checks.optional_import("tyro", "experiments")
        positional, prog = (tyro.conf.PositionalRequiredArgs,), f"python -m baal_jax {name}"
        getattr(command, function)(tyro.cli(getattr(command, arguments), prog=prog, args=argv[1:], config=positional))
    except (ValueError, ImportError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # pyright: ignore  # a code page of Windows has no "−"
    sys.exit(main(sys.argv[1:]))
