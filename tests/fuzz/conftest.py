"""One fuzz target for each reader: whatever it is given is read, or refused in a sentence.

`make test-all` runs a few hundred examples of each, `make fuzz` many more. A target is a test with
hypothesis' @given and no settings of its own; an example that failed belongs into @example.
"""

from __future__ import annotations

import os

import hypothesis
import pytest

EXAMPLES = int(os.environ.get("DENSEKIT_FUZZ_EXAMPLES", "200"))
"""For each target. One that starts a process for each example takes a fiftieth (`processes`)."""


targets: set[object] = set()


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.slow)
    function = getattr(item, "obj", None)
    if getattr(function, "is_hypothesis_test", False) and function not in targets:
        targets.add(function)  # one function serves all of its parameters
        examples = EXAMPLES // 50 if item.get_closest_marker("processes") else EXAMPLES
        hypothesis.settings(max_examples=max(1, examples))(function)
