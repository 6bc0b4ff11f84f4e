"""Simulated truths for the searches, in which the sites that carry the word are known."""

import numpy as np

PAIRS = 24


class Truth:
    """A model of known effects.

    A unit adds its effect to the score of every pair, noise included, and a score is 1 at most.

    hard   how much lower each pair scores, whatever is swapped
    noise  drawn anew for each group
    asked  (group, places of pairs) in the order in which a search asked
    """

    def __init__(self, effects: dict, noise: float = 0, seed: int = 0, pairs: int = PAIRS):
        self.effects, self.noise, self.seed, self.asked = effects, noise, seed, []
        self.hard = np.random.default_rng(seed).uniform(0, 0.3, pairs)

    def __call__(self, groups, pairs) -> list[np.ndarray]:
        places = list(range(pairs) if isinstance(pairs, int) else pairs)
        self.asked += [(group, tuple(places)) for group in groups]
        return [self.value(group)[places] for group in groups]

    def value(self, group) -> np.ndarray:
        rng = np.random.default_rng([self.seed, *(1 + unit for unit in sorted(group))])
        total = min(1.0, sum(self.effects[unit] for unit in group))
        return np.minimum(1, total - self.hard + self.noise * rng.normal(size=len(self.hard)))

    def looks(self, group) -> list[int]:
        """How many pairs were asked for, of the times a group was asked for on the first so many."""
        return [
            len(places)
            for one, places in self.asked
            if one == group and places == tuple(range(len(places)))
        ]
