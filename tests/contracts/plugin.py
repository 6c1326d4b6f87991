"""A plugin of pytest that gives every suite the members of ``broken.py``."""

import hypothesis

from tests.contracts import BROKEN


def pytest_configure(config):
    """After conftest, which has to come before jax."""
    from tests.contracts import broken

    # What fails need not be made small.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("broken", hypothesis.settings.get_profile("strict"), phases=phases)
    hypothesis.settings.load_profile("broken")
    for family, members in broken.FAMILIES.items():
        BROKEN[family] = {f"broken_{name}": member for name, member in members.items()}


def pytest_collection_modifyitems(items):
    """After ``-k broken_`` has been asked for."""
    noticing = [item.nodeid.rpartition(", ")[2].split("-")[0].rstrip("]") for item in items]
    items[:] = [item for item, start in zip(items, noticing, strict=True) if item.originalname.startswith(start)]
