"""Functions of Python that a command line names by their module.

A function of no arguments gives a pipeline, somebody else's too, or a reader.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any

from textpatch.cli.options import LOADING
from textpatch.errors import PatchError, closest

NAMED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
# options that say how a model is loaded, which a function says itself
OF_LOADING = ("device", "dtype", "height", "width", *LOADING)


def names_function(named: object) -> bool:
    """True for a module and a function with a colon between, unless a file or folder bears that name."""
    return isinstance(named, str) and bool(NAMED.fullmatch(named)) and not os.path.exists(named)


def given_by(named: str) -> Any:
    """Call a function by its name, and return what it gives.

    Its module is looked for in the working folder first.
    Raises PatchError for a module or function that is not there, and for one that fails.
    """
    function = _found(*named.split(":"))
    try:
        return function()
    except PatchError:
        raise
    except Exception as error:
        raise PatchError(
            f"{named} was called and raised {type(error).__name__}: {error}; see that it runs in Python, or "
            "give --debug for the whole of it"
        ) from error


def _found(module: str, name: str) -> Any:
    """Function of a module.   Raises PatchError where it is not there."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise PatchError(
            f"{module}:{name} was asked for, and importing {module} raised {type(error).__name__}: {error}; "
            f"name a module in {here}, or an installed one"
        ) from error
    finally:
        sys.path.remove(here)
    function = getattr(imported, name, None)
    if not callable(function):
        known = [known for known, one in vars(imported).items() if callable(one)]
        raise PatchError(f"{module} has no function {name!r}{closest(name, known)}")
    return function


def pipeline_given_by(options, named: str) -> Any:
    """Pipeline that a function gives, somebody else's wrapped.

    Raises PatchError as `given_by` and `wrap`, and for options that say how a model is loaded.
    """
    from textpatch.foreign.wrapping import wrap
    from textpatch.pipelines import denoiser_of

    given = [name for name in OF_LOADING if name in vars(options).get("given", ())]
    if given:
        option = given[0].replace("_", "-")
        raise PatchError(
            f"--{option} says how a model is loaded, and {named} loads its own; leave it out, and let the "
            "function do it"
        )
    pipeline = given_by(named)
    if not hasattr(pipeline, "denoiser") and denoiser_of(pipeline) is not None:
        return wrap(pipeline)
    return pipeline
