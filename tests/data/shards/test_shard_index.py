"""The index: what is stored is read; a byte that changed is found."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import UserError
from densekit.data.paths import Paths
from densekit.data.shards.index import MEMBER, Shard, ShardIndex, index_from_bytes

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9)


def an_index(n: int = 5) -> ShardIndex:
    members = np.zeros(n, MEMBER)
    members["offset"], members["size"] = np.arange(n) * 2**40, 2**33
    members["shard"], members["crc32"] = np.arange(n) % 2, 2**32 - 1
    return ShardIndex(
        (Shard("train-0.tar", 10, "ab"), Shard("train-1.tar", 20)),
        members,
        np.arange(n),
        Paths.of(f"é/{i}.jpg" for i in range(n)),
        {0: "cat", 2: "dög"},
        is_folder=True,
        packed={"resize": None},
        columns={"patient": np.array(["p1", "", "p2", "p3", "p4"][:n], dtype=object)},
    )


def assert_same(one: ShardIndex, other: ShardIndex) -> None:
    assert (one.shards, one.classes, one.is_folder) == (
        other.shards,
        other.classes,
        other.is_folder,
    )
    assert np.array_equal(one.members, other.members)
    assert np.array_equal(one.labels, other.labels)
    assert list(one.names) == list(other.names)
    assert {h: c.tolist() for h, c in one.columns.items()} == {
        h: c.tolist() for h, c in other.columns.items()
    }


def test_what_is_stored_is_read() -> None:
    assert MEMBER.itemsize == 24
    assert_same(index_from_bytes(an_index().to_bytes(), "x"), an_index())


@given(st.data())
def test_a_byte_that_changed_is_found(data: st.DataObject) -> None:
    content = bytearray(an_index().to_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(UserError):  # else what changed is nothing that the index says
        assert_same(index_from_bytes(bytes(content), "some.npz"), an_index())


@given(st.data())
def test_an_index_that_is_cut_off_is_found(data: st.DataObject) -> None:
    content = an_index().to_bytes()
    with pytest.raises(UserError, match=r"some\.npz: is corrupt"):
        index_from_bytes(content[: data.draw(st.integers(0, len(content) - 1))], "some.npz")


@given(st.lists(NAMES, max_size=9))
def test_names(texts: list[str]) -> None:
    names = Paths.of(texts)
    rows = np.zeros(len(texts), MEMBER)
    index = ShardIndex((Shard("a.tar", 9),), rows, rows["shard"], names, {})
    assert index_from_bytes(index.to_bytes(), "x").names == texts
    assert names.below("a/é") == [f"a/é{text}" for text in texts]


def test_some_of_the_shards() -> None:
    some = an_index().of_shards(["train-1.tar"], "x")
    assert list(some.names) == ["é/1.jpg", "é/3.jpg"]
    assert some.labels.tolist() == [1, 3]
    assert some.columns["patient"].tolist() == ["", "p3"]
    with pytest.raises(UserError, match=r"x: lists 2 shards but not train-7\.tar"):
        an_index().of_shards(["train-7.tar"], "x")
