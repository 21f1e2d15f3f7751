"""Scoring millions of images: `run.py` is where to begin.

`folder.py` is what lies on the disk, `parts.py` what a process does, `processes.py` and `on_ray.py`
how many of them share the parts.
"""

from densekit.config import needs_extra

with needs_extra("score", "--out"):
    import pyarrow  # noqa: F401
