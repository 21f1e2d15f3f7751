"""Pushes an artifact to the Hugging Face hub, in one commit that replaces nobody else's files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import densekit
from densekit.config import UserError, needs_extra
from densekit.hub.card import hub_card, is_untouched
from densekit.models.artifact import CONFIG, WEIGHTS, locate_artifact, read_artifact

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

README = "README.md"
HTTP_CLIENTS = ("requests", "httpx", "httpx2")  # in different versions of huggingface_hub


@dataclass(frozen=True)
class Pushed:
    """The result of a push."""

    url: str
    """The commit's."""
    commit: str
    files: tuple[str, ...]
    notes: tuple[str, ...]
    """For the user."""


@dataclass(frozen=True)
class PushOptions:
    """How an artifact is pushed."""

    private: bool = False
    """Whether a newly created repository is private."""
    revision: str | None = None
    """A branch, created from main if missing; None: main."""
    licence: str | None = None
    """The hub's identifier, such as apache-2.0."""
    force: bool = False
    """Also replace files that are not densekit's."""


def push_artifact(folder: Path, repository: str, options: PushOptions) -> Pushed:
    """Uploads the artifact in `folder` (its own or a run's) and its card to `repository`.

    The token is huggingface_hub's: $HF_TOKEN, or the one stored by `hf auth login`. Foreign weights
    and an edited card are kept unless `force` is set; other files are always kept. Raises
    UserError.
    """
    with needs_extra("hub", "pushing to the hub"):
        from huggingface_hub import CommitOperationAdd, HfApi
    place = locate_artifact(folder)
    config = read_artifact(place).config  # verifies the checksum
    api = HfApi(
        endpoint=os.environ.get("HF_ENDPOINT") or None,
        library_name="densekit",
        library_version=densekit.__version__,
    )
    with _sentences(repository):
        info = _there(api, repository, options)
        text = (place / CONFIG).read_bytes()
        card = hub_card(config, repository, options.licence).encode()
        content: dict[str, bytes | Path] = {
            WEIGHTS: place / WEIGHTS, CONFIG: text, README: card
        }  # fmt: skip
        notes = _paths_note(json.loads(text))
        names = {sibling.rfilename for sibling in info.siblings or []}
        if not options.force:
            _check_ours(api, repository, info, names)
            if not _may_replace_card(api, repository, info, names):
                del content[README]
                notes += (
                    f"{README} was written or edited by hand and is kept; --force replaces it",
                )
        commit = api.create_commit(
            repository,
            [CommitOperationAdd(name, what) for name, what in content.items()],
            commit_message=f"{config.model.name}, by densekit {densekit.__version__}",
            revision=options.revision,
            parent_commit=info.sha,  # the hub refuses if the branch has changed since
        )
    return Pushed(commit.commit_url, commit.oid, tuple(content), notes)


def _there(api: HfApi, repository: str, options: PushOptions) -> ModelInfo:
    """The repository at the branch; creates what is missing."""
    from huggingface_hub import errors

    try:
        info = api.model_info(repository, revision=options.revision)
    except errors.RevisionNotFoundError:
        assert options.revision is not None
        api.create_branch(repository, branch=options.revision)
        return api.model_info(repository, revision=options.revision)
    except errors.RepositoryNotFoundError:
        api.create_repo(repository, private=options.private)
        if options.revision is not None:
            api.create_branch(repository, branch=options.revision)
        return api.model_info(repository, revision=options.revision)
    if options.private and not info.private:
        raise UserError(
            f"--private: {repository} is there already, and public; make it private on the hub "
            f"first, or choose another name"
        )
    return info


def _check_ours(api: HfApi, repository: str, info: ModelInfo, names: set[str]) -> None:
    """Raises UserError if the weights or config there are not densekit's."""
    theirs = sorted(names & {WEIGHTS, CONFIG})
    if not theirs:
        return
    if CONFIG in names:
        try:
            tree = json.loads(_text(api, repository, CONFIG, info))
        except ValueError:
            tree = None
        if isinstance(tree, dict) and {"format", "preprocessing", "classes"} <= tree.keys():
            return
    raise UserError(
        f"{repository}: holds {' and '.join(theirs)} that densekit did not write; choose another "
        f"name, or --revision BRANCH, or replace them with --force"
    )


def _may_replace_card(api: HfApi, repository: str, info: ModelInfo, names: set[str]) -> bool:
    return README not in names or is_untouched(_text(api, repository, README, info))


def _text(api: HfApi, repository: str, name: str, info: ModelInfo) -> str:
    file = api.hf_hub_download(repository, name, revision=info.sha)
    return Path(file).read_text(encoding="utf-8", errors="replace")


def _paths_note(config: dict[str, Any]) -> tuple[str, ...]:
    """A warning if config.json, which is about to become visible to others, has local paths."""
    places = list(dict.fromkeys(_absolute(config)))
    if not places:
        return ()
    return (
        f"{CONFIG} names places of the machine it was trained on: {', '.join(places[:3])}"
        f"{', ...' if len(places) > 3 else ''}",
    )


def _absolute(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _absolute(value)
    elif isinstance(tree, str) and (tree.startswith("~") or PurePath(tree).is_absolute()):
        yield tree


@contextmanager
def _sentences(repository: str) -> Iterator[None]:
    """Turns the hub's errors into UserErrors."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"{repository}: expected org/name, such as anna/pets") from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"{repository}: {_why(error)}") from error
    except Exception as error:
        offline = isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled))
        client = type(error).__module__.partition(".")[0]
        if not offline and client not in HTTP_CLIENTS:
            raise
        raise UserError(
            f"{repository}: the hub cannot be reached ({error}); are you offline? Nothing was "
            f"changed there"
        ) from error


def _why(error: Any) -> str:
    """The reason in an error response."""
    status = error.response.status_code if error.response is not None else 0
    said = (error.server_message or str(error)).strip().splitlines()[0]
    known = {
        401: "the hub does not know you: hf auth login, or set HF_TOKEN to a token that may write",
        403: "your token may not write there; it needs the right to write to this name",
        404: "the hub has no such place, or you may not see it",
        409: "it was made or changed by somebody at the same moment; look, and push again",
        412: "it was changed while this was being pushed; look, and push again",
    }
    return f"{known.get(status, f'the hub answers {status}')} (it says: {said})"
