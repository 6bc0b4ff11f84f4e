"""Repositories in the Hugging Face cache, which is only read."""

from __future__ import annotations

import os
import re
from pathlib import Path

from textpatch.errors import WeightsError
from textpatch.weights.reading.entry import opened
from textpatch.weights.reading.files import inside
from textpatch.weights.reading.terms import Terms

# a piece of a repository's or a revision's name
PIECE = re.compile(r"(?!.*(?:\.\.|--))[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
COMMIT = re.compile(r"[0-9a-f]{40}")
MAIN = "main"


def cached_snapshot(name: str, revision: str = MAIN, terms: Terms | None = None) -> Path:
    """Folder of `org/name` in the Hugging Face cache, which lies where huggingface_hub looks for it.

    In it refs/<revision> names a commit, and snapshots/<commit> is the folder.  Without a ref for the main
    branch the only snapshot is taken, as it is there when a repository was fetched by its commit.
    Raises WeightsError with the command that fetches the model if it is not there.
    """
    pieces = [*name.split("/"), *revision.split("/")]
    if name.count("/") != 1 or not all(map(PIECE.fullmatch, pieces)):
        raise WeightsError(
            f"{name!r} at {revision!r} is no model's name and revision; "
            "expected org/name, and a branch, tag or commit",
            "bad-repository",
        )
    hub = _hub()
    repository = hub / f"models--{name.replace('/', '--')}"
    commit = _commit(repository / "refs", revision)
    snapshots = _snapshots(repository)
    if not commit and revision == MAIN and len(snapshots) == 1:
        (commit,) = snapshots
        if terms:
            terms.note(f"{name}: its commit {commit[:12]}, the only one in the cache")
    snapshot = repository / "snapshots" / commit
    if not commit or not os.path.isdir(snapshot):
        raise _not_cached(hub, name, revision, snapshots)
    target = os.path.realpath(snapshot)
    if Path(target) != Path(os.path.realpath(repository)) / "snapshots" / commit:
        raise WeightsError(f"{snapshot} leads out to {target}; fetch it again", "leads-out")
    return snapshot


def _not_cached(hub: Path, name: str, revision: str, snapshots: list[str]) -> WeightsError:
    command = f"hf download {name}"
    if revision != MAIN:
        command += f" --revision {revision}"
    others = ""
    if snapshots:
        others = f"; there are {', '.join(f'{name}@{commit}' for commit in snapshots[:3])}"
    return WeightsError(
        f"{name} at {revision} is not in {hub}{others}; fetch it: {command}", "not-cached"
    )


def _snapshots(repository: Path) -> list[str]:
    """Commits of a repository that are in the cache."""
    folder = repository / "snapshots"
    names = os.listdir(folder) if os.path.isdir(folder) else ()
    return sorted(name for name in names if COMMIT.fullmatch(name))


def _hub() -> Path:
    """Folder of the Hugging Face cache, as huggingface_hub reads it from the environment."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _commit(refs: Path, revision: str) -> str:
    """Commit of a revision, "" if the cache does not know it."""
    if COMMIT.fullmatch(revision):
        return revision
    if not os.path.isfile(refs / revision):
        return ""
    with opened(inside(refs, revision)) as file:
        commit = file.read(64).decode("ascii", "replace").strip()
    if not COMMIT.fullmatch(commit):
        raise WeightsError(
            f"{refs / revision} holds {commit!r}; expected a commit, 40 hex digits", "bad-ref"
        )
    return commit
