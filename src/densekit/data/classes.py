"""Matches the classes of a list or folder with a network's: by name if both sides have names.

A list or folder numbers its classes by its classes.txt, or by the sorted names of its folders. A
network's outputs, or the training images, may be numbered differently. `match` converts the first
numbering to the second, or raises an error that shows both.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from densekit.config import UserError
from densekit.data.listing import Examples, is_label, read_class_names

SHOWN = 10  # class names in a message


@dataclass(frozen=True)
class Numbering:
    """The classes to convert labels to: a network's outputs, or the training labels."""

    names: Mapping[int, str]
    """By label; empty if they have no names."""
    count: int
    owner: str
    """Whose classes they are, for messages: "the network", or the training list."""

    @classmethod
    def of_network(cls, classes: Sequence[str], named: bool) -> Numbering:
        return cls(dict(enumerate(classes)) if named else {}, len(classes), "the network")

    @classmethod
    def of_examples(cls, examples: Examples) -> Numbering:
        return cls(examples.classes, examples.num_classes, examples.origin)


def match(examples: Examples, target: Numbering) -> Examples:
    """`examples` with the labels, and the names, of `target`.

    - Both have names: by name. A name that `target` lacks is an error.
    - A list without names, for classes whose names are whole numbers: its labels are those names.
    - A list without names, for classes with other names: its labels are `target`'s, with a note.
    - Class folders for classes without names: folders named by numbers are those labels; others
      are taken in sorted order if their count matches, with a note.

    Raises UserError.
    """
    if not target.names:
        return examples if examples.lines is not None else _folders_by_number(examples, target)
    if examples.classes:
        new, notes = _by_name(examples, target)
    else:
        new, notes = _by_number(examples, target)
    return _renumbered(examples, new, target.names, notes)


def names_by_output(file: Path, outputs: int, asked: str) -> list[str]:
    """A name for each output from `label name` lines in any order; `asked` is the option that
    named the file. Raises UserError unless the labels are exactly those of the outputs.
    """
    names = read_class_names(file)
    if not file.is_file():
        raise UserError(f"{asked}: there is no file {file}")
    if set(names) == set(range(outputs)):
        return [names[label] for label in range(outputs)]
    wanted = f"the network has {outputs} outputs, labels 0 to {outputs - 1}"
    missing = [label for label in range(outputs) if label not in names]
    if not names:
        raise UserError(f"{asked}: {file} is empty, but {wanted}")
    if len(names) == outputs and set(names) == set(range(1, outputs + 1)):
        raise UserError(f"{asked}: labels 1 to {outputs}, but {wanted}; number them from 0")
    if len(names) != outputs:
        raise UserError(f"{asked}: {len(names)} names, but {wanted}")
    outside = next(label for label in names if label >= outputs)
    raise UserError(
        f"{asked}: names label {outside} but not label {missing[0]}; {wanted}; "
        f"name each of them once"
    )


# How labels are matched ---------------------------------------------------------------------


def _by_name(examples: Examples, target: Numbering) -> tuple[dict[int, int], list[str]]:
    own, new, foreign = examples.classes, {}, []
    theirs: dict[str, list[int]] = {}
    for label, name in target.names.items():
        theirs.setdefault(spelling(name), []).append(label)
    for label in _present(examples):
        places = theirs.get(spelling(own[label]), []) if label in own else []
        if label in places or len(places) == 1:
            new[label] = label if label in places else places[0]
        elif places:
            raise UserError(
                f"{examples.origin}: {target.owner} has {len(places)} classes called "
                f"{own[label]!r}, labels {listed(map(str, places))}; give a list file whose "
                f"classes.txt uses the same numbers"
            )
        else:
            foreign.append(label)
    alike = all(old == label for old, label in new.items())
    for label in foreign:
        # With the same numbers on both sides, a label that one side does not name keeps its own.
        if not alike or (label in own and label in target.names) or _is_folder(examples):
            raise _foreign(examples, label, target)
        new[label] = label
    if alike or _is_folder(examples):
        return new, []
    old = next(old for old, label in new.items() if old != label)
    return new, [
        f"{examples.origin}: numbers the classes differently from {target.owner}, so they are "
        f"matched by name: its label {old} is {own[old]!r}, which is {new[old]} there"
    ]


def _by_number(examples: Examples, target: Numbering) -> tuple[dict[int, int], list[str]]:
    """For a list that does not name its classes."""
    labels, names = _present(examples), target.names
    numbers = {int(name): label for label, name in names.items() if is_label(name)}
    if not len(numbers) == len(names) == target.count:
        shown = listed(f"{label} is {name!r}" for label, name in sorted(names.items()))
        return {label: label for label in labels}, [
            f"{examples.origin}: names no classes, so its labels are taken as those of "
            f"{target.owner}: {shown}"
        ]
    if all(number == label for number, label in numbers.items()):
        return {label: label for label in labels}, []
    strangers = [label for label in labels if label not in numbers]
    if strangers:
        raise _foreign(examples, strangers[0], target)
    old = next((label for label in labels if numbers[label] != label), None)
    if old is None:
        return {label: label for label in labels}, []
    return {label: numbers[label] for label in labels}, [
        f"{examples.origin}: its labels are taken as the class names of {target.owner}, which "
        f"are numbers: label {old} is the class {names[numbers[old]]!r}, label {numbers[old]} there"
    ]


def _folders_by_number(examples: Examples, target: Numbering) -> Examples:
    """For class folders, if the classes have no names."""
    own = examples.classes
    if all(is_label(name) for name in own.values()):
        new = {label: int(name) for label, name in own.items()}
        if max(new.values()) < target.count and len(set(new.values())) == len(new):
            names = {new[label]: name for label, name in own.items()}
            return _renumbered(examples, new, names, [])
    elif len(own) == target.count:
        return replace(examples, notes=(*examples.notes, (
            f"{examples.origin}: the classes of {target.owner} have no names, so the {len(own)} "
            f"class folders are taken as labels 0 to {len(own) - 1} in sorted order"
        )))  # fmt: skip
    raise UserError(
        f"{examples.origin}: its class folders are {listed(own.values())}, and the "
        f"{target.count} classes of {target.owner} have no names, only numbers from 0 to "
        f"{target.count - 1}, so they cannot be matched; rename the folders to these numbers, "
        f"or give a list file"
    )


def _renumbered(
    examples: Examples, new: Mapping[int, int], names: Mapping[int, str], notes: list[str]
) -> Examples:
    labels = examples.labels
    if any(old != label for old, label in new.items()):
        labels = np.array([new[label] for label in labels.tolist()], np.int64)
    return replace(examples, labels=labels, classes=dict(names), notes=(*examples.notes, *notes))


def _foreign(examples: Examples, label: int, target: Numbering) -> UserError:
    """A class that `target` lacks, with both lists."""
    own = examples.classes
    name = repr(own[label]) if label in own else f"label {label}"
    have = [own.get(label, str(label)) for label in _present(examples)]
    remedy = (
        "rename its folders to match, or remove those that are not classes"
        if _is_folder(examples)
        else "rename its classes to match; a list's are in a classes.txt of `label name` lines "
        "beside it"
    )
    return UserError(
        f"{examples.origin}: its class {name} is not a class of {target.owner}: it has "
        f"{listed(have)}; {target.owner} has {listed(target.names.values())}; {remedy}"
    )


def _present(examples: Examples) -> list[int]:
    return [int(label) for label in np.unique(examples.labels)]


def _is_folder(examples: Examples) -> bool:
    return examples.lines is None


def spelling(name: str) -> str:
    """Unicode's NFC form: file systems differ in how they encode accents."""
    return unicodedata.normalize("NFC", name)


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many there are."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
