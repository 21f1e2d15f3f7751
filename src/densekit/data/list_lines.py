"""A list file's `path label` lines, a million of them in a fraction of a second.

Plain lines, which are nearly all, are parsed together as arrays of bytes; any line that is not
clearly plain is left to the caller.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PART_BYTES = 1 << 20
NEWLINE, ZERO = 10, ord("0")
MOST_BLANKS, MOST_DIGITS = 8, 9  # in a row, in a plain line

_BLANK = np.zeros(256, bool)
_BLANK[[ord(" "), ord("\t"), ord("\r")]] = True
_DIGIT = np.zeros(256, bool)
_DIGIT[ZERO : ZERO + 10] = True
_VISIBLE = np.zeros(256, bool)
_VISIBLE[ord("!") : ord("~") + 1] = True


@dataclass(frozen=True)
class Lines:
    """The non-empty lines of a text, in order; positions are in bytes."""

    number: np.ndarray
    """Line number, from 1, int64 [n]."""
    start: np.ndarray
    """Where its path starts, without blanks, int64 [n]."""
    end: np.ndarray
    """Where its path ends; for a line that is not plain, where the line ends."""
    label: np.ndarray
    """int64 [n]; -1: the line is not plain."""


def plain_lines(content: bytes, delimiter: str | None) -> Lines:
    """Splits UTF-8 text into lines.

    A plain line is a path, the `delimiter` (one ASCII character, not a digit; None: blanks), and a
    label of at most nine digits directly after it. The path starts and ends with a visible ASCII
    character and does not start with a slash.
    """
    parts, at, number = [], 0, 1
    while at < len(content):  # in parts: arrays of the whole text would fragment the heap
        after = content.find(b"\n", at + PART_BYTES) + 1 or len(content)
        part = content[at:after]
        found = _cut(part, delimiter)
        parts.append((found.number + number, found.start + at, found.end + at, found.label))
        at, number = after, number + part.count(b"\n")
    empty = np.empty(0, np.int64)
    columns = zip(*parts, strict=True) if parts else [()] * 4
    return Lines(*(np.concatenate([empty, *arrays]) for arrays in columns))


def _cut(content: bytes, delimiter: str | None) -> Lines:
    """Parses a part that holds whole lines; its first line is number 0."""
    text = np.frombuffer(content, np.uint8)
    newlines = np.flatnonzero(text == NEWLINE)
    start = np.concatenate([[0], newlines + 1]).astype(np.int64)
    stop = np.concatenate([newlines, [len(text)]]).astype(np.int64)
    for _ in range(MOST_BLANKS):
        start += (start < stop) & _BLANK[_at(text, start)]
        stop -= (start < stop) & _BLANK[_at(text, stop - 1)]
    filled = np.flatnonzero(start < stop)
    start, stop = start[filled], stop[filled]

    end, label, power = stop.copy(), np.zeros(len(stop), np.int64), 1
    more = np.ones(len(stop), bool)
    for _ in range(MOST_DIGITS):
        digit = _at(text, end - 1)
        more &= _DIGIT[digit] & (end > start)
        label += np.where(more, digit.astype(np.int64) - ZERO, 0) * power
        end -= more
        power *= 10
    between = _at(text, end - 1)
    plain = (end < stop) & (_BLANK[between] if delimiter is None else _is(between, delimiter))
    end -= plain
    for _ in range(MOST_BLANKS):
        end -= (end > start) & _BLANK[_at(text, end - 1)]
    plain &= (end > start) & _VISIBLE[_at(text, start)] & _VISIBLE[_at(text, end - 1)]
    plain &= _at(text, start) != ord("/")
    return Lines(filled, start, np.where(plain, end, stop), np.where(plain, label, -1))


def _at(text: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The bytes at these positions; an arbitrary byte for a position outside."""
    return text[np.clip(position, 0, max(len(text) - 1, 0))] if len(text) else position * 0


def _is(found: np.ndarray, delimiter: str) -> np.ndarray:
    one = len(delimiter) == 1 and delimiter.isascii() and not delimiter.isdigit()
    return found == ord(delimiter) if one else np.zeros(len(found), bool)
