"""The sources keep the limits of how they read.

`python tests/support/prose.py --list` names every place that counts against one.
"""

import io
import re
import tokenize

import pytest

from support import prose


@pytest.fixture(scope="module", params=prose.FOLDERS)
def counts(request):
    return prose.counted(prose.sources(request.param))


def test_first_sentences_state_one_fact(counts):
    """At most 15 % of first sentences glue clauses with a semicolon or a colon."""
    assert counts.percent_glued() <= prose.MOST_GLUED, counts.glued[:5]


def test_first_sentences_begin_with_what_is_done_or_given(counts):
    """At least 60 % of first sentences begin with a verb or a noun phrase."""
    assert counts.percent_begun() >= prose.LEAST_BEGUN, counts.badly_begun[:5]


def test_conditional_expressions_are_few(counts):
    """At most 3 conditional expressions per 100 code lines."""
    assert counts.per_hundred(counts.conditionals) <= prose.MOST_CONDITIONALS


def test_lines_are_short(counts):
    """Nine code lines of ten end by column 95, every line by column 110."""
    assert counts.p90() <= prose.MOST_P90
    assert not counts.too_long, counts.too_long[:5]


def test_no_lambda_is_bound_to_a_name(counts):
    """What has a name is a function with a `def`."""
    assert not counts.lambdas


def test_functions_and_files_are_small(counts):
    """Functions of 12 lines in the median and at most 60, files of at most 400, of a model at most 500."""
    assert counts.median_function() <= prose.MOST_MEDIAN
    assert counts.longest_function() <= prose.MOST_FUNCTION
    assert not [(name, lines) for name, lines in counts.files if lines > prose.most_lines(name)]


def test_functions_of_the_benchmarks_are_small():
    """None has more than 60 lines."""
    counts = prose.counted(prose.sources("benchmarks"))
    assert counts.longest_function() <= prose.MOST_FUNCTION


def hanging(source: str) -> list[str]:
    """Comments behind a closing bracket that stands alone on its line, far from what they are about."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    return [
        token.line.strip()
        for token in comments
        if re.fullmatch(r"\s*[)\]}]+[,:]?\s*", token.line[: token.start[1]])
        and not token.string.startswith(("# fmt:", "# noqa", "# type:"))
    ]


@pytest.mark.parametrize("folder", [*prose.FOLDERS, "tests", "benchmarks"])
def test_comments_stand_by_what_they_are_about(folder):
    """A formatter that breaks a line leaves its comment behind the last bracket; it belongs above."""
    for path in prose.sources(folder):
        assert hanging(path.read_text("utf-8")) == [], path
    assert hanging("x = f(\n    1\n)  # why\n") and not hanging("x = f(1)  # why\n")
