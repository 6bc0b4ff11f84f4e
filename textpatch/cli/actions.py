"""How the command line stores what is given: nothing that was asked for is lost in silence."""

from __future__ import annotations

import argparse

MOST_SEEDS = 100_000  # in one range


class Given(argparse.Action):
    """An action that stores an option's value and loses none.

    A list grows with every repetition.  Another single value is an error.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        before = self._given(namespace)
        if before is None:
            setattr(namespace, self.dest, values)
        elif isinstance(values, list):
            setattr(namespace, self.dest, before + values)
        elif values != before:
            raise argparse.ArgumentError(
                self, f"{before} and {values} were given, and it takes one; leave one out"
            )

    def _given(self, namespace):
        """Return what the command line gave so far, None if nothing.

        A default is not given.
        """
        given = vars(namespace).setdefault("given", set())
        if self.dest in given:
            return getattr(namespace, self.dest)
        given.add(self.dest)
        return None


class GivenFlag(Given):
    """An action that stores True for an option without a value."""

    def __init__(self, *arguments, default=False, **named) -> None:
        super().__init__(*arguments, nargs=0, default=default, **named)

    def __call__(self, parser, namespace, values, option_string=None):
        super().__call__(parser, namespace, True, option_string)


class GivenSeeds(Given):
    """An action that stores seeds and ranges of seeds, each range a list, as one list of seeds."""

    def __call__(self, parser, namespace, values, option_string=None):
        seeds = [seed for some in values for seed in some]
        super().__call__(parser, namespace, seeds, option_string)


def seeds(text: str) -> list[int]:
    """Read a seed, or a range of seeds such as 0-3, whose ends are in it."""
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() or not dash)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no seed; give whole numbers and ranges of them, such as 0-3 7"
        )
    if not dash:
        return [int(first)]
    if not int(first) <= int(last) < int(first) + MOST_SEEDS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no range of seeds; give the smaller one first, and at most {MOST_SEEDS:,} seeds"
        )
    return list(range(int(first), int(last) + 1))
