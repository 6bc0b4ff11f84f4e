"""The laws of design, section 5, and what they rest on, over random models of every architecture.

Each line is a test of a law, whose docstring says it, on random sites, rows, steps and plans of random
SDXL, DeepFloyd IF (stages I and II) and MMDiT models.  test_faults.py breaks each by a fault in the
library.  By default stage II, which is stage I with a level of noise beside its time, is left out, and each
law has one of the models of kin.
"""

from dataclasses import replace
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import laws, laws_of_calls
from support.by_default import taking
from support.strategies import ARCHITECTURES, KIN, STATIC, STATIC_KIN, cases, fixed_case

EXAMPLES = max(settings().max_examples // 5, 1)  # of each architecture
STATED = []  # laws with their architectures
EVOLVING = ["mmdit"]


def over(law, architectures=ARCHITECTURES):
    """A test of a law on random cases of each architecture."""
    STATED.append((law, architectures))

    def test(architecture, data):
        law(data.draw(cases(architecture)))

    test.__name__ = law.__name__  # hypothesis draws by the name
    test.__doc__ = law.__doc__
    drawn = settings(max_examples=EXAMPLES)(given(data=st.data())(test))
    some = [
        pytest.param(each, marks=[pytest.mark.long] * (each == "if-ii")) for each in architectures
    ]
    return pytest.mark.parametrize("architecture", some)(drawn)


# 1, 10: hooks
test_observing_changes_nothing = over(laws.law_observing_changes_nothing)
test_none_leaves_the_output = over(laws.law_none_leaves_the_output)
test_an_unknown_name_installs_nothing = over(laws.law_an_unknown_name_installs_nothing)
test_silence_is_an_error = over(laws.law_silence_is_an_error)
test_no_residue = over(laws.law_no_residue)
test_blocks_close_in_any_order = over(laws.law_blocks_close_in_any_order)
test_other_hooks_stay = over(laws.law_other_hooks_stay)
test_other_threads_are_untouched = over(laws.law_other_threads_are_untouched)

# 11: plans as data; 6 is in test_mathematics.py
test_plans_survive_json = over(laws.law_plans_survive_json)
test_spelling_does_not_matter = over(laws.law_spelling_does_not_matter)

# 2, 3, 4, 7: runs under a plan
test_identity = over(laws.law_identity)
test_all_sites_are_the_target = over(laws.law_all_sites_are_the_target)
test_the_start_step = over(laws.law_the_start_step)
test_unnamed_rows_are_untouched = over(laws.law_unnamed_rows_are_untouched)
test_micro_batches_change_nothing = over(laws.law_micro_batches_change_nothing)

# 8, 9: the tensors of a site
test_earlier_sites_are_unchanged = over(laws.law_earlier_sites_are_unchanged)
test_image_keys_and_queries_are_untouched = over(laws.law_image_keys_and_queries_are_untouched)
test_patch_writes_the_named_cells_alone = over(laws_of_calls.law_patch_writes_the_named_cells_alone)

# 11, 16: caches
test_captures_are_what_a_naive_hook_sees = over(
    laws_of_calls.law_captures_are_what_a_naive_hook_sees
)
test_caches_survive_their_tensors = over(laws.law_caches_survive_their_tensors)
test_caches_are_copies = over(laws.law_caches_are_copies)
test_estimates_are_exact = over(laws.law_estimates_are_exact)
test_rows_mean_their_labels = over(laws.law_rows_mean_their_labels)

# 5, 12: one intervention in several ways.  Agreement with the official runs is in test_recorded_runs.py,
# law 13 in test_ports.py
test_lock_step_is_capture_then_patch = over(laws.law_lock_step_is_capture_then_patch)
test_every_swap_is_a_patch = over(laws_of_calls.law_every_swap_is_a_patch)
test_injection_is_a_swap = over(laws.law_injection_is_a_swap, STATIC)
test_evolving_text_refuses_injection = over(laws.law_evolving_text_refuses_injection, EVOLVING)

# 14, 17: heads, gradients; 15 is in test_mathematics.py
test_all_heads_are_the_site = over(laws.law_all_heads_are_the_site)
test_gradients_pass_through_a_swap = over(laws_of_calls.law_gradients_pass_through_a_swap)


def of_kin():
    """Each law with every model of kin that it holds for; by default with one of them, each in its turn."""
    for number, (law, architectures) in enumerate(STATED):
        held = [
            kin
            for kin in KIN
            if architectures is ARCHITECTURES or (architectures is STATIC) == (kin in STATIC_KIN)
        ]
        turn = held[number % len(held)]
        for kin in held:
            marks = [pytest.mark.long] * (kin != turn)
            yield pytest.param(law, kin, id=f"{law.__name__}-{kin}", marks=marks)


@pytest.mark.parametrize("law, architecture", list(of_kin()))
def test_their_kin_keep_the_laws(law, architecture):
    """One case of each model that shares its attention, or its text, with one of the above."""
    law(fixed_case(architecture))


@pytest.mark.parametrize("architecture", taking(("sdxl",), STATIC))
def test_injection_at_subsets_of_the_sites(architecture, long):
    """Law 5 for each site and for all four, in the long form for every subset and on every U-Net."""
    case = fixed_case(architecture)
    sites = range(len(case.model.sites))
    sizes = range(1, 5) if long else (1, 4)
    for chosen in chain.from_iterable(combinations(sites, size) for size in sizes):
        laws.law_injection_is_a_swap(replace(case, sites=chosen))
