"""One conformance suite a family. What stands here of a new member of a registry is tested nowhere else."""

from typing import Any

BROKEN: dict[str, dict[str, Any]] = {}


def members(family: str, registry: dict[str, Any]) -> dict[str, Any]:
    """The registry; where the test of the suites runs them, faulty members in its place (see ``broken.py``)."""
    return BROKEN.get(family, registry)
