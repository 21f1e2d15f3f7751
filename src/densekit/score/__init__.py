"""Scoring millions of images: start reading at `run.py`.

`folder.py` is the layout on disk, `parts.py` what one process does; `processes.py` and `on_ray.py`
distribute the parts over processes.
"""

from densekit.config import needs_extra

with needs_extra("score", "--out"):
    import pyarrow  # noqa: F401
