"""Whether plain data is as the types of `textpatch.stored` say, key by key."""

import types
import typing

from PIL import Image

from textpatch import stored

# names that the types use, as they stand in texts
KNOWN = {**vars(stored), "Image": Image}


def unlike(value: object, hint: object, place: str = "") -> list[str]:
    """Places where a value is not of its type.  Keys that a type does not name are among them."""
    if isinstance(hint, str):
        return unlike(value, eval(hint, KNOWN), place)
    if isinstance(hint, typing.ForwardRef):
        return unlike(value, hint.__forward_arg__, place)
    if typing.is_typeddict(hint):
        return _unlike_dict(value, hint, place)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        each = [unlike(value, one, place) for one in typing.get_args(hint)]
        return [] if [] in each else min(each, key=len)
    kind = typing.get_origin(hint) or hint or type(None)
    if not isinstance(value, (int, float) if kind is float else kind):
        return [f"{place}: {type(value).__name__} for {hint}"]
    inner = typing.get_args(hint)
    if kind is list:
        return [gap for one in value for gap in unlike(one, inner[0], f"{place}[]")]
    if kind is dict:
        return [
            gap for key, one in value.items() for gap in unlike(one, inner[1], f"{place}.{key}")
        ]
    return []


def _unlike_dict(value: object, hint: object, place: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{place}: {type(value).__name__} for {hint.__name__}"]
    known = hint.__annotations__  # those of the dicts that it extends are among them
    found = [f"{place}.{key}: missing" for key in sorted(hint.__required_keys__ - value.keys())]
    found += [
        f"{place}.{key}: not in {hint.__name__}" for key in sorted(value.keys() - known.keys())
    ]
    for key in value.keys() & known.keys():
        found += unlike(value[key], known[key], f"{place}.{key}")
    return found
