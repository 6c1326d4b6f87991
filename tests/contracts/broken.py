"""A plugin of pytest that gives every suite members with one fault each: ``test_suites.py`` wants to see them fail.

A name ends in the test that has to notice, which is the beginning of that test's name.
"""

from tests.contracts import BROKEN


def pytest_configure(config):
    """After conftest, which has to come before jax."""
    for make in FAMILIES:
        family, members = make()
        BROKEN[family] = {f"broken_{name}": member for name, member in members.items()}


FAMILIES = []
