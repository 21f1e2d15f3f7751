from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densekit.data import paths as module
from densekit.data.paths import Paths

names = st.text(max_size=9) | st.binary(max_size=5).map(os.fsdecode)


@given(st.lists(names.filter(lambda n: n.isprintable() or "\0" in n), max_size=9), st.data())
@settings(deadline=None)
def test_they_are_read_as_a_list_is(listed: list[str], data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", data.draw(st.integers(1, 4)))
        packed = Paths.of(iter(listed))
        assert packed == listed
        assert list(packed) == listed
        assert len(packed) == len(listed)
        assert [packed[i] for i in range(-len(listed), 0)] == listed
        assert packed[1:7:2] == listed[1:7:2]
        assert Paths.of(packed) is packed
        assert b"\0".join(packed.blocks()).decode("utf-8", "surrogateescape") == "\0".join(listed)
        chosen = data.draw(st.lists(st.integers(0, max(len(listed) - 1, 0)))) if listed else []
        assert packed.take(np.array(chosen, np.int64)) == [listed[i] for i in chosen]


def test_what_is_not_there_is_an_index_error() -> None:
    packed = Paths.of(["a", "b"])
    for index in (2, -3):
        with pytest.raises(IndexError):
            packed[index]
    assert packed != ["a"]
    assert packed != ["a", "c"]
