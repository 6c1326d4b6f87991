"""One conformance suite a family. What stands here of a new member of a registry is tested nowhere else."""

from typing import Any

BROKEN: dict[str, dict[str, Any]] = {}


def members(family: str, registry: dict[str, Any]) -> dict[str, Any]:
    """The registry, and the faulty members that the test of the suites adds to it (see ``broken.py``)."""
    return {**registry, **BROKEN.get(family, {})}
