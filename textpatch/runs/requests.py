"""Requests of runs, and in what two of them differ.

A request is plain JSON and holds everything that decides the results of a run.  Two requests are the same if
their JSON is the same.  So 1, 1.0 and true, which Python calls equal, make three requests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from textpatch.errors import StoreError, closest

# entries that differ, (stored, now) each, by dotted name
Differences: TypeAlias = dict[str, tuple[object, object]]
ABSENT = "absent"
SHOWN = 6  # differences named in an error
LONGEST = 60  # characters of a value in an error


def request_key(request) -> str:
    """Sha256 of a request's canonical JSON."""
    return hashlib.sha256(_canonical(request).encode()).hexdigest()


def flatten(tree, prefix: str = "") -> dict:
    """Leaves of a nested JSON value by dotted name.

    {"a": {"b": [1]}} gives {"a.b.0": 1}.  An empty dict or list is a leaf.
    """
    leaves = {}
    for name, value in _children(tree):
        leaves.update(flatten(value, f"{prefix}.{name}" if prefix else str(name)))
    return leaves or {prefix: tree}


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> Differences:
    """Leaves that differ, by dotted name, as pairs (old, new).

    A leaf that one side lacks is ABSENT there.
    """
    old = flatten(old)
    new = flatten(new)
    pairs = {
        name: (old.get(name, ABSENT), new.get(name, ABSENT))
        for name in dict.fromkeys([*old, *new])
        if name
    }
    return {
        name: pair for name, pair in pairs.items() if _canonical(pair[0]) != _canonical(pair[1])
    }


def asked_otherwise(stored: dict, new: dict) -> dict[str, tuple]:
    """Differences between the requests of two manifests, by names that begin with `request`."""
    if stored["key"] == new["key"]:
        return {}
    old = stored["request"]
    now = new["request"]
    return differences({"request": old}, {"request": now}) or {"request": (old, now)}


def covered(name: str, allow: Sequence[str]) -> bool:
    """True if `allow` holds the entry of that dotted name or one above it."""
    return any(f"{name}.".startswith(f"request.{entry}.") for entry in allow)


def require_entries(allow: Sequence[str], *requests: dict) -> None:
    """Raise StoreError for a name in `allow` that is no entry of any request."""
    names = {name for request in requests for leaf in flatten(request) for name in _names_of(leaf)}
    for entry in allow:
        if not any(covered(f"request.{name}", [entry]) for name in names):
            raise StoreError(
                f"{entry!r} may not differ, for the request has no such entry{closest(entry, names)}"
            )


def another_run(folder: Path, differing: dict[str, tuple], *, may_allow: bool) -> str:
    """Message that a folder holds the run of another request.

    differing  as of `asked_otherwise`
    may_allow  whether the command has the option --allow
    """
    shown = "; ".join(_both(name, *pair) for name, pair in list(differing.items())[:SHOWN])
    if len(differing) > SHOWN:
        shown += f"; and {len(differing) - SHOWN} more"
    advice = "give another --out, ask for the same"
    if may_allow:
        advice += ", or name what may differ with --allow"
    return f"{folder} holds another run ({shown}); {advice}"


def _canonical(value) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _children(tree) -> Iterable[tuple]:
    """Pairs (name, value) of what lies directly in a dict or a list, none of a leaf."""
    if isinstance(tree, dict):
        return tree.items()
    if isinstance(tree, list):
        return enumerate(tree)
    return ()


def _names_of(leaf: str) -> tuple[str, str]:
    """Names under which a leaf may be allowed, its own and that of the entry it lies in."""
    return leaf, leaf.partition(".")[0]


def _both(name: str, stored, asked) -> str:
    name = name.removeprefix("request.")
    return f"{name}: stored {_short(stored)}, asked {_short(asked)}"


def _short(value) -> str:
    text = ABSENT
    if value is not ABSENT:
        text = json.dumps(value, ensure_ascii=False)
    if len(text) > LONGEST:
        text = text[: LONGEST - 3] + "..."
    return text
