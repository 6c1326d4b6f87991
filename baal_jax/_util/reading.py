"""Files of other people, in which anything can be wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reading(where: str | Path, cure: str) -> Iterator[None]:
    """Whatever goes wrong inside is a ValueError that names the file: a damaged one can raise all kinds of errors."""
    try:
        yield
    except (ImportError, FileNotFoundError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(where) in str(error):
            raise
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{where}: cannot be read ({said[:200]}): {cure}") from error
