"""The tests of the searches are held to their word: a fault planted in a search's source must fail one of them.

A fault is (check, owner, function, text, text put in its place); see test_faults.py.
"""

from functools import partial

import pytest
import test_attribution as attributing
import test_contribution as reading
import test_modes as modes
import test_readings as readings
import test_search as searching
from strategies import fixed_case
from test_faults import plant

from textpatch import attribution, contribution, sampling, search, trials


def raw(test, *args, **options):
    """A test with arguments of its own in the place of hypothesis'."""
    return partial(test.hypothesis.inner_test if hasattr(test, "hypothesis") else test, *args, **options)


class Drawn:
    """What a test draws, said beforehand."""

    def __init__(self, *values):
        self.values = list(values)

    def draw(self, _):
        return self.values.pop(0)


def joining_by_share(*args) -> None:
    with pytest.MonkeyPatch.context() as patch:
        readings.test_a_site_joins_the_set_unless_it_gives_next_to_nothing(*args, patch)


PARTS = {0: 0.2, 1: 0.0, 2: 0.11, 3: 0.24, 4: 0.0}
pair_by_pair = raw(searching.test_a_gain_is_taken_pair_by_pair, 0, 0.5)
all_that_carry = raw(searching.test_the_set_is_all_that_carry_and_nothing_else, PARTS, 0)
goes_on = raw(searching.test_a_screening_goes_on_with_those_in_doubt, 0, 2, 2)
joins = raw(searching.test_a_site_that_does_nothing_alone_joins, {1, 4, 5, 9, 17, 20})
not_tried = raw(searching.test_nothing_is_tried_where_nothing_could_gain, {3, 8})
few_pairs = raw(searching.test_a_gain_is_looked_at_on_few_pairs_first, 2, 4)
no_further = raw(searching.test_a_refusal_looks_no_further_than_it_must, 4)
together = raw(searching.test_sites_that_do_nothing_alone_begin_together, {1, 3}, range(6))
on_the_way = searching.test_a_group_on_the_way_is_scored_as_far_as_it_is_needed
keeps = raw(searching.test_a_screening_keeps_the_carriers, PARTS, 0, 6)
heads = raw(searching.test_the_heads_taken_away_are_those_needed, PARTS, 0)
last_start = raw(searching.test_the_last_start_that_loses_nothing, 3, 0)
lost = raw(reading.test_it_is_what_is_lost_without_the_tokens_values, "mmdit", seed=1, tokens=[0, 2])
slope = raw(attributing.test_it_is_the_slope_towards_the_swap, "mmdit", seed=1)
of_if = raw(attributing.test_it_is_the_slope_towards_the_swap, "if-i", seed=1)
along = partial(attributing.test_it_runs_along_the_sources_generation, "sdxl")
all_heads = raw(modes.test_all_heads_of_sites_are_the_sites, "sdxl")

FAULTS = {
    "both sides draw their own pairs": (
        pair_by_pair, search, "gain", "statistic(*drawn[half:]", "statistic(*(np.roll(x, 1, 0) for x in drawn[half:])"),
    "any gain will do": (
        partial(searching.test_chance_rarely_adds_a_site, searching.PAIRS, None), search, "_step",
        'level)["low"] > 0', 'level)["value"] > 0'),
    "every site against no swap": (all_that_carry, search, "_step", "score([group], n)", "score([()], n)"),
    "a set of the last site alone": (all_that_carry, search, "_step", "(*group, *units)", "units"),
    "any gap will do": (goes_on, search, "screen", 'if gap["low"] > 0', 'if gap["value"] > 0'),
    "the gap to the worst": (goes_on, search, "screen", "below[:1]", "below[-1:]"),
    "all pairs at once": (goes_on, search, "screen", "min(2 * n, pairs)", "pairs"),
    "who is out is scored again": (
        goes_on, search, "screen", "score(running, n)", "score([*running, *out], n)[: len(running)]"),
    "a race of one round": (goes_on, search, "screen", "len(running) == k", "True"),
    "the unclear left out": (
        searching.test_sites_alike_are_all_kept, search, "screen", "Screening(tuple(running),", "Screening(tuple(running[:k]),"),
    "the least instead of the most": (all_that_carry, search, "joining", "ranking(seen, statistic)", "ranking(seen, statistic)[::-1]"),
    "tried on all pairs": (joins, search, "joining", "min(first, len(failed))", "len(failed)"),
    "tried on pairs that do not fail": (joins, search, "joining", "order[:n]", "order[n:]"),
    "perfect is not perfect": (not_tried, search, "_worst_first", "< PERFECT", "< 1"),
    "tried in vain": (not_tried, search, "joining", "values[:0], statistic)", "values[:0], statistic) or True"),
    "no swap on all pairs": (few_pairs, search, "grow", "least or pairs", "pairs"),
    "no swap on few pairs, come what may": (few_pairs, search, "_step", 'if clear or', 'if True or'),
    "the first is all there is": (together, search, "grow", "not steps[0].kept and", "False and"),
    "what all need is what one needs": (together, search, "inseparable", "len(needed) > 1", "len(needed) > 9"),
    "all together are always tried": (
        searching.test_nothing_carries_nothing, search, "inseparable", '["low"] <= 0', '["low"] < 0'),
    "a refusal by few pairs' proposal ends it": (
        searching.test_what_few_pairs_propose_and_all_refuse_is_not_the_end, search, "_tried", "if steps[-1].kept:", "if True:"),
    "later gains on as few": (on_the_way, search, "_step", "max(least, FEW)", "least"),
    "an early look like the last": (few_pairs, search, "_step", 'else EARLY', 'else 0.95'),
    "looked at in vain": (no_further, search, "_while_hopeful", "or not _within_reach(", "or _within_reach("),
    "all pairs whatever they can say": (no_further, search, "_while_hopeful", "max(failed, 1)", "len(order)"),
    "no hope for the rest": (joins, search, "_hoped", "[:failed]] = 1", "[:failed]] = 0"),
    "the best first": (joins, search, "_worst_first", "argsort(means", "argsort(-means"),
    "a group on the way on all pairs": (on_the_way, search, "_tried", "fromkeys((known, pairs))", "fromkeys((pairs,))"),
    "the last group on few pairs": (on_the_way, search, "_tried", "fromkeys((known, pairs))", "fromkeys((known,))"),
    "what is left out may not join": (
        partial(joining_by_share, "contribution", 0.021, True), readings.searching, "_read", "< NOTHING *", "< 1 *"),
    "what gives nothing joins": (
        partial(joining_by_share, "attribution", 0.019, False), readings.searching, "_grown", "(*measured, *screening.barred)", "measured"),
    "clearly worse counts as better": (keeps, search, "better_than", "gain(value, least", "gain(least, value"),
    "the least needed head first": (heads, search, "take_away", "worst = min(", "worst = max("),
    "heads enough too early": (heads, search, "take_away", 'missing["value"] <= 0', 'missing["value"] <= 0.2'),
    "the first start": (last_start, search, "latest_start", "max(s for", "min(s for"),
    "scores not scaled": (lost, contribution, "norms", "key.mT * scale", "key.mT"),
    "the values of all tokens": (lost, contribution, "norms", "keys[-1][:, :, tokens]", "keys[-1][:, :, [0, 1]]"),
    "keys of the image": (lost, contribution, "norms", "torch.cat(keys, dim=2)", "keys[-1]"),
    "the other guidance branch": (
        partial(reading.test_guidance_is_looked_through, "mmdit"), contribution, "norms",
        "record.q[0][-1:]", "(record.q[0][:1] * 1.5)"),
    "T5's tokens among CLIP's": (
        reading.test_the_word_is_found_among_the_tokens, contribution, "word_tokens", "lengths[0]]", "0]"),
    "what a swap would add to L": (slope, attribution, "drops", "-sum(", "sum("),
    "text that asks nothing": (
        slope, attribution, "change", "(q[:1] for q in record.q)", "(q[:1] * (q is record.q[0]) for q in record.q)"),
    "its own text": (slope, attribution, "change", "text[1:]", "text[:1]"),
    "the target's image": (of_if, attribution, "change", "x[:1] for x in image", "x[1:] for x in image"),
    "the variance, too": (of_if, attribution, "drops", "[:, : x.shape[1]]", ""),
    "every step": (along, attribution, "attribution", "range(start, steps)", "range(steps)"),
    "the first latents at every step": (along, attribution, "attribution", "path[step][None]", "path[0][None]"),
    "a fork of the target": (
        raw(modes.test_a_forked_run_is_all_runs_from_the_start, "if-i", Drawn(fixed_case("if-i"), [0, 2], 64)),
        sampling.Loop, "_in_parts", "now[row.copies]", "now[drawn[1].name]"),
    "noise of its own": (
        raw(modes.test_a_forked_run_is_all_runs_from_the_start, "if-i", Drawn(fixed_case("if-i"), [0, 2], 64)),
        sampling.Loop, "_in_parts", "(draw[places] for draw in draws)", "(draw[places].flip(-1) for draw in draws)"),
    "heads forgotten": (all_heads, trials, "rows_and_plan", "heads=heads", "heads=None"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch):
    """The check holds, and with the fault in place it does not."""
    check, owner, function, old, new = FAULTS[fault]
    plant(monkeypatch, owner, function, old, new)
    with pytest.raises((AssertionError, IndexError)):
        check()


@pytest.mark.parametrize("mode", ["exhaustive", "contribution"])
@pytest.mark.parametrize("function, old, new", [
    ("_made", "generations = sum(row.sampled for row in rows)", "generations = len(plan.swaps)"),
    ("_needed", "[source] * (SOURCE in names)", "[source]"),
])  # fmt: skip
def test_generations_not_counted_or_made_in_vain_are_noticed(mode, function, old, new, monkeypatch):
    """Fault: swaps are counted for rows; the source is made again with every batch."""
    plant(monkeypatch, trials.Trials, function, old, new)
    with pytest.raises(AssertionError):
        modes.test_every_generation_is_counted(mode, monkeypatch)


def test_a_target_that_runs_in_vain_is_noticed(monkeypatch):
    """Fault: where text is static, the target is made on every pair all the same."""
    plant(monkeypatch, trials.Trials, "_needed", "not prompt_settles_text(", "(lambda _: True)(")
    with pytest.raises(AssertionError):
        modes.test_where_text_is_static_the_target_does_not_run()


def test_a_record_under_the_wrong_name_is_noticed(tmp_path, monkeypatch):
    """Fault: every batch of a pair and seed is looked up under the name of the first."""
    plant(monkeypatch, trials.Trials, "_made", "if number > 1", "if number > 9")
    with pytest.raises(trials.StoreError, match="was made by plan"):
        modes.test_a_killed_search_ends_as_if_it_had_not_been("exhaustive", tmp_path, monkeypatch)
