"""Labels mean the same class on both sides, or are refused with both lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from densekit.config import UserError
from densekit.data.classes import Numbering, match, names_by_output
from densekit.data.config import DataConfig
from densekit.data.listing import Examples
from densekit.data.splits import open_split

PETS = ["cat", "dog", "horse"]


def listed(labels: list[int], classes: dict[int, str] | None = None) -> Examples:
    paths, lines = [f"/d/{i}.jpg" for i in range(len(labels))], list(range(1, len(labels) + 1))
    return Examples(paths, np.array(labels, np.int64), classes or {}, "/d", "/d/l.txt", lines)


def foldered(*names: str) -> Examples:
    """One image of each class folder."""
    paths = [f"/d/{name}/1.jpg" for name in sorted(names)]
    classes = dict(enumerate(sorted(names)))
    return Examples(paths, np.arange(len(names)), classes, "/d", "/d")


def network(*names: str, named: bool = True) -> Numbering:
    return Numbering.of_network(names, named)


DIGITS = network(*map(str, range(10)))
AS_TEXT = network(*sorted(map(str, range(11))))  # 0, 1, 10, 2, ...: how folders 0 to 10 sort


def test_a_missing_folder_shifts_nothing() -> None:
    """Names that are "0" to "9" are names: folders without 3 were counted as 0 to 8."""
    examples = match(foldered(*(str(i) for i in range(10) if i != 3)), DIGITS)
    assert examples.labels.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    unnamed = network(*map(str, range(10)), named=False)
    assert match(foldered("9", "4"), unnamed).labels.tolist() == [4, 9]


def test_a_lists_numbers_are_names_where_the_names_are_numbers() -> None:
    examples = match(listed(list(range(11))), AS_TEXT)
    assert examples.labels.tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 2]
    assert "label 2 is the class '2', label 3 there" in examples.notes[0]
    assert match(foldered(*map(str, range(11))), AS_TEXT).labels.tolist() == list(range(11))
    assert match(listed([3, 0]), DIGITS).notes == ()
    with pytest.raises(UserError, match=r"label 0 is not a class .* 0, 1; the network has 1, 2"):
        match(listed([0, 1]), network("1", "2"))
    assert match(listed([2, 1]), network("01", "02")).labels.tolist() == [1, 0]


def test_matching_again_changes_nothing() -> None:
    """A validation list is brought to the training labels, and then to the network's outputs."""
    once = match(listed(list(range(11))), AS_TEXT)
    assert match(once, AS_TEXT).labels.tolist() == once.labels.tolist()


def test_other_names_are_refused_with_both_lists() -> None:
    with pytest.raises(UserError) as error:
        match(foldered("Katze", "Hund", "Pferd"), network(*PETS))
    for part in "Hund, Katze, Pferd", "the network has cat, dog, horse", "rename its folders":
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"0, 1, 2; the network has cat"):
        match(foldered("0", "1", "2"), network(*PETS))
    with pytest.raises(UserError, match=r"'cat' is not a class .* cat, dog; the network has 0, 1"):
        match(foldered("cat", "dog"), network("0", "1"))


def test_a_list_is_matched_by_its_own_names() -> None:
    examples = match(listed([0, 1, 2], {0: "horse", 1: "dog", 2: "cat"}), network(*PETS))
    assert examples.labels.tolist() == [2, 1, 0]
    assert examples.classes == dict(enumerate(PETS))
    assert "its label 0 is 'horse', which is 2 there" in examples.notes[0]
    # only classes with images matter
    assert match(listed([0], {0: "dog", 1: "bird"}), network(*PETS)).labels.tolist() == [1]
    with pytest.raises(UserError, match="'bird' is not a class of"):
        match(listed([1], {0: "dog", 1: "bird"}), network(*PETS))


def test_a_list_without_names_is_said_to_be_taken_by_number() -> None:
    examples = match(listed([2, 0]), network(*PETS))
    assert examples.labels.tolist() == [2, 0]
    assert (
        "taken as those of the network: 0 is 'cat', 1 is 'dog', 2 is 'horse'" in (examples.notes[0])
    )


def test_folders_for_a_network_without_names() -> None:
    """ImageNet's folders for torchvision's file: the sorted order, said; else refused."""
    unnamed = network("0", "1", "2", named=False)
    examples = match(foldered("n02", "n01", "n03"), unnamed)
    assert examples.labels.tolist() == [0, 1, 2]
    assert "labels 0 to 2 in sorted order" in examples.notes[0]
    for names in ("n01", "n02"), ("1", "2", "3"), ("0", "00"):
        with pytest.raises(UserError, match="have no names, only numbers from 0 to 2"):
            match(foldered(*names), unnamed)


def test_a_name_that_two_outputs_share() -> None:
    """ImageNet has two classes called crane."""
    twice = network("crane", "dog", "crane")
    labels = match(listed([2, 0, 1], {0: "crane", 1: "dog", 2: "crane"}), twice).labels
    assert labels.tolist() == [2, 0, 1]
    with pytest.raises(UserError, match="2 classes called 'crane', labels 0, 2"):
        match(listed([1], {1: "crane"}), twice)


def test_an_accent_has_two_spellings() -> None:
    assert match(foldered("cafe\u0301", "tea"), network("caf\xe9", "tea")).labels.tolist() == [0, 1]


def test_training_and_validation_go_the_same_way(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path / "train", {str(i): 1 for i in range(11)})
    write_folder(tmp_path / "val", {str(i): 1 for i in range(11)})
    lines = "".join(f"val/{i}/000.png {i}\n" for i in range(11))
    (tmp_path / "list.txt").write_text(lines)
    config = DataConfig(train=str(tmp_path / "train"), val=str(tmp_path / "list.txt"))
    _, val = open_split(config)
    assert all(val.classes[label] == path.split("/")[-2] for label, path in
               zip(val.labels.tolist(), val.paths, strict=True))  # fmt: skip


def test_names_are_numbered_by_label_not_by_line(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("2 horse\n0 cat\n1 dog\n")
    assert names_by_output(file, 3, "--classes c") == PETS
    for text, message in {
        "1 cat\n2 dog\n3 horse\n": "labels 1 to 3, but .* labels 0 to 2; number them from 0",
        "0 cat\n1 dog\n5 horse\n": "names label 5 but not label 2",
        "0 cat\n1 dog\n": "2 names, but the network has 3 outputs",
        "": "is empty",
    }.items():
        file.write_text(text)
        with pytest.raises(UserError, match=f"^--classes c: .*{message}"):
            names_by_output(file, 3, "--classes c")
    with pytest.raises(UserError, match="there is no file"):
        names_by_output(tmp_path / "none.txt", 3, "--classes none.txt")
