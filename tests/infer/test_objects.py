"""objects.py against an S3 server on loopback, with answers that break off."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from store import Store, serving

from densekit import remote
from densekit.config import UserError
from densekit.data.decode import UnreadableImage
from densekit.infer.inputs import image_names
from densekit.infer.objects import StoreFailed, objects_below, read_object

pytestmark = pytest.mark.slow  # the server takes seconds to start


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """With five images and two other objects below photos/2026."""
    with serving() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.variables.items():
            patch.setenv(name, value)
        for number, key in enumerate(KEYS):
            store.put(key, picture(number))
        store.put("2026/notes.md")
        store.put("2026/raw/scan.nii")
        store.put("2026b/other.png", picture(9))
        yield store
        remote._open_bucket.cache_clear()


KEYS = ("2026/a.png", "2026/b c#1%20~é.png", "2026/b/x.PNG", "2026/b/y.png", "2026/z.png")


def picture(number: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_a_prefix_is_a_folder_in_the_order_of_keys(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [f"s3://photos/{key}" for key in KEYS]
    assert list(image_names(["s3://photos/2026"])) == wanted
    assert list(image_names(["s3://photos/2026/"])) == wanted
    said = "s3://photos/2026: left out as not images: 1 .md, 1 .nii\n"
    assert said in capsys.readouterr().err
    assert len(list(objects_below("s3://photos"))) == len(KEYS) + 3
    assert list(image_names(["s3://photos/2026/z.png"])) == wanted[-1:]


def test_answers_that_break_off_are_asked_for_again(store: Store) -> None:
    store.broken["2026/a.png"] = 2
    assert read_object("s3://photos/2026/a.png") == picture(0)
    assert store.broken["2026/a.png"] == 0
    assert read_object(f"s3://photos/{KEYS[1]}") == picture(1), "keys are taken as they are"


def test_an_object_that_never_comes_is_no_bad_image(store: Store) -> None:
    store.broken["2026/a.png"] = -1
    with pytest.raises(StoreFailed, match=r"s3://photos/2026/a\.png: cannot be read: "):
        read_object("s3://photos/2026/a.png")
    store.broken["2026/a.png"] = 0
    assert store.asked["2026/a.png"] > 10


def test_mistakes_are_named(store: Store) -> None:
    with pytest.raises(UnreadableImage, match="there is no such object"):
        read_object("s3://photos/2026/gone.png")
    with pytest.raises(UserError, match=r"s3://none/x: cannot be listed: .*bucket does not exist"):
        list(image_names(["s3://none/x"]))
    with pytest.raises(UserError, match=r"no images lie below this prefix, only 1 \.nii"):
        list(image_names(["s3://photos/2026/raw"]))
    with pytest.raises(UserError, match="no images lie below this prefix"):
        list(image_names(["s3://photos/2027"]))
    with pytest.raises(UserError, match="names no bucket; write s3://bucket/prefix"):
        read_object("s3:///a.png")
