"""Scoring millions of images: `run.py` is where to begin.

`folder.py` is what lies on the disk, `parts.py` what a process does, `processes.py` and `on_ray.py`
how many of them share the parts.
"""

from densekit.config import UserError

try:
    import pyarrow  # noqa: F401
except ImportError as error:
    raise UserError(
        f'--out writes Parquet with pyarrow ({error}): pip install "densekit[score]"'
    ) from error
