"""Where in a checkpoint the DenseNet is, by the names of its tensors alone.

A checkpoint is seen as one flat mapping, the keys of its dicts joined by dots, such as
`state_dict.module.features.conv0.weight`. Whatever stands before a name that one of the keymaps
knows is a prefix and is taken off, so no wrapper (`state_dict`, `model_ema`) and no prefix
(DataParallel's `module.`, torch.compile's `_orig_mod.`, Lightning's `model.`) has to be listed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from densekit.config import UserError
from densekit.weights import keymaps
from densekit.weights.keymaps import KeyMap

AVERAGED = re.compile(r"(?:^|[._])(ema|averaged?|shadow|swa)(?:[._]|$)", re.IGNORECASE)
"""In the prefix of weights that are a moving average of the trained ones."""
HEAD_NAMES = re.compile(
    r"(classifier|fc|heads?|last_linear|linear|logits|outputs?|predictions|dense(_\d+)?)"
    r"(\.(fc|linear|out|\d+))*"
)
"""Modules that hold the class head, where it does not stand under the keymap's own name."""
ANCHORS = ("features.conv0", "features.norm0", "features.norm5")


@dataclass
class Entries:
    """What a file holds: its tensors, not read yet, and the names of all else."""

    tensors: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Entries:
        """Of tensors that were read already."""
        return cls({name: functools.partial(tensors.__getitem__, name) for name in tensors})


@dataclass(frozen=True)
class Layout:
    """Where the network's tensors stand."""

    keymap: KeyMap
    prefix: str
    """Before each of the network's names, with its last separator."""
    names: dict[str, str]
    """The file's names of the network's tensors -> ours; one that the keymap does not know keeps
    its own, without the prefix."""
    ignored: tuple[str, ...] = ()
    """Entries beside the network."""
    head: str | None = None
    """The module that is the class head, where it is not the keymap's own."""
    averaged: str | None = None
    """The prefix of an average of these weights that was not taken."""

    def notes(self, file: str) -> list[str]:
        """What a person should know of how `file` was read."""
        said = []
        if self.prefix:
            said.append(f'took "{self.prefix}" off the names')
        if self.head is not None:
            said.append(f'took "{self.head}" for the class head')
        if self.ignored:
            count = len(self.ignored)
            entries = "entry" if count == 1 else "entries"
            said.append(f"ignored {count} {entries} beside the network: {_first(self.ignored, 5)}")
        if AVERAGED.search(self.prefix):
            said.append("these are averaged weights (EMA)")
        elif self.averaged is not None:
            said.append(
                f'holds averaged weights (EMA) too, under "{self.averaged[:-1]}": to take those, '
                f"write {file}#ema"
            )
        return [f"{file}: {'; '.join(said)}"] if said else []


@dataclass(frozen=True)
class _Network:
    """A DenseNet among a file's names."""

    prefix: str
    keymap: KeyMap
    known: dict[str, str]
    """File's name -> ours."""


def find_network(entries: Entries, key: str | None = None) -> Layout:
    """The network of a file, or the one of several that stands under `key`; "ema" finds an
    average by whatever name.

    Raises UserError where there is none that the keymaps know, and where there are several.
    """
    names, found = list(entries.tensors), _networks(list(entries.tensors))
    if not found:
        raise UserError(_unknown(names, entries.others))
    network = _chosen(found, key)
    of_others = {name for other in found if other is not network for name in other.known}
    renamed, head = dict(network.known), None
    if not any(our.startswith("classifier.") for our in renamed.values()):
        head = _head(names, network)
        renamed |= head
    beside = list(entries.others)
    for name in names:
        own = name.removeprefix(network.prefix)
        if name in renamed or own in network.keymap.dropped:
            continue
        if name.startswith(network.prefix) and name not in of_others:
            renamed[name] = own
        else:
            beside.append(name)
    averages = [other for other in found if other is not network and _is_average(other)]
    ignored = dict.fromkeys(_entry(name, network.prefix) for name in beside)
    for entry in list(ignored):
        if any(other.prefix.startswith((f"{entry}.", f"{entry}/")) for other in averages):
            del ignored[entry]
    return Layout(
        network.keymap,
        network.prefix,
        renamed,
        tuple(ignored),
        re.split(r"[./][^./]*$", next(iter(head)))[0] if head else None,
        averages[0].prefix if averages and not _is_average(network) else None,
    )


def _networks(names: Sequence[str]) -> list[_Network]:
    """All that share no tensor, the largest first."""
    candidates = []
    for keymap in keymaps.KEYMAPS:
        for prefix in _prefixes(names, keymap):
            under = (name for name in names if name.startswith(prefix))
            ours = {name: keymap.ours(name[len(prefix) :]) for name in under}
            known = {name: our for name, our in ours.items() if our is not None}
            if any(keymaps.layer_of(our) for our in known.values()):
                dropped = sum(name[len(prefix) :] in keymap.dropped for name in ours)
                candidates.append((len(known) + dropped, _Network(prefix, keymap, known)))
    taken: set[str] = set()
    found = []
    for _, network in sorted(candidates, key=lambda candidate: -candidate[0]):  # stable: KEYMAPS
        if taken.isdisjoint(network.known):
            found.append(network)
            taken |= network.known.keys()
    return found


def _prefixes(names: Sequence[str], keymap: KeyMap) -> list[str]:
    """What stands before the names of the stem's or the last norm's tensors."""
    leaves = "|".join({*keymap.norm.values(), *keymap.plain.values()})
    modules = "|".join(re.escape(keymap.modules[anchor]) for anchor in ANCHORS)
    form = re.compile(rf"(|.*[./])(?:{modules}){re.escape(keymap.separator)}(?:{leaves})")
    matches = (form.fullmatch(name) for name in names)
    return list(dict.fromkeys(match[1] for match in matches if match))


def _chosen(found: list[_Network], key: str | None) -> _Network:
    plain = [network for network in found if not _is_average(network)]
    averaged = [network for network in found if _is_average(network)]
    if key is None:
        choice = plain or averaged
    else:
        choice = [n for n in found if n.prefix.startswith((f"{key}.", f"{key}/"))]
        if not choice and key.lower() == "ema":
            choice = averaged
    prefixes = ", ".join(network.prefix[:-1] or "(no prefix)" for network in found)
    if not choice:
        raise UserError(f"no network under #{key}; there are networks under: {prefixes}")
    largest = choice[0]
    if len(choice) > 1 and 2 * len(choice[1].known) >= len(largest.known):
        raise UserError(
            f"holds several networks, under {prefixes}: say which one with #, such as "
            f"FILE#{largest.prefix[:-1] or choice[1].prefix[:-1]}"
        )
    return largest


def _is_average(network: _Network) -> bool:
    return AVERAGED.search(network.prefix) is not None


def _head(names: Sequence[str], network: _Network) -> dict[str, str]:
    """The class head's tensors by other names, beside the network or beside what wraps it; none
    where it has several layers."""
    leaves = {their: our for our, their in network.keymap.plain.items()}
    parts = re.findall(r"[^./]*[./]", network.prefix)
    for depth in range(len(parts), -1, -1):
        before = "".join(parts[:depth])
        modules: dict[str, dict[str, str]] = {}
        for name in names:
            module, _, leaf = name.removeprefix(before).rpartition(network.keymap.separator)
            if (
                name.startswith(before)
                and name not in network.known
                and HEAD_NAMES.fullmatch(module)
            ):
                modules.setdefault(module, {})[leaf] = name
        if len(modules) == 1:
            (stored,) = modules.values()
            if stored.keys() <= leaves.keys():
                return {name: f"classifier.{leaves[leaf]}" for leaf, name in stored.items()}
    return {}


def is_head(name: str) -> bool:
    """Whether one of a network's tensors, by its name in the file, is of a class head."""
    return HEAD_NAMES.fullmatch(name.rpartition(".")[0]) is not None


def _entry(name: str, prefix: str) -> str:
    """The outermost part of a name that is not of the prefix: optimizer of optimizer.state.0."""
    parts, own = re.split(r"(?<=[./])", name), re.split(r"(?<=[./])", prefix)
    same = 0
    while same < min(len(parts) - 1, len(own)) and parts[same] == own[same]:
        same += 1
    return "".join(parts[: same + 1]).rstrip("./")


def _unknown(names: Sequence[str], others: Sequence[str]) -> str:
    if not names:
        held = f"its entries are {_first(others, 5)}" if others else "it is empty"
        return f"holds no weights, a mapping from names to tensors: {held}"
    words = _words(names)
    nearest = max(keymaps.KEYMAPS, key=lambda keymap: len(words & _words(keymap.modules.values())))
    example = next(their for our, their in nearest.modules.items() if "denseblock" in our)
    return (
        f"no DenseNet that densekit can recognise: its tensors are named {_first(names, 3)}; the "
        f"nearest layout that is known is {nearest.name}'s: {nearest.modules[ANCHORS[0]]}, "
        f"{example}, ..."
    )


def _words(names: Iterable[str]) -> set[str]:
    return {re.sub(r"\{\w\}|\d+", "#", word) for name in names for word in re.split("[./_]", name)}


def _first(names: Sequence[str], count: int) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
