"""Self-tests of readers that were passed, each once in a process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# by the identity of the reader, as JSON
RESULTS: dict[str, object] = {}


def once(identity: dict | None, test: Callable[[], T]) -> T:
    """Result of a self-test, which runs once in a process for each identity of a reader.

    identity  all that the result depends on, as JSON has it.  With None the test runs in every call
    A test that raises is not remembered.
    """
    if identity is None:
        return test()
    key = json.dumps(identity, sort_keys=True)
    if key not in RESULTS:
        RESULTS[key] = test()
    return RESULTS[key]
