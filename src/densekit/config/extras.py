"""Libraries that only some uses need: the extras of pyproject.toml."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from densekit.config.section import UserError


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Around the imports of libraries that densekit[extra] installs, for `what` the user asked.

    Raises UserError, such as `--on ray needs ray: pip install "densekit[ray]"`, for one that is not
    there or cannot be imported.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or str(error)).partition(".")[0]
        raise UserError(f'{what} needs {missing}: pip install "densekit[{extra}]"') from error
    except ImportError as error:
        raise UserError(
            f"{what} needs a library that is installed and cannot be imported ({error}): "
            f'pip install --force-reinstall "densekit[{extra}]"'
        ) from error
