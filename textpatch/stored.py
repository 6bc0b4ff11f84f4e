"""Types of what results and run folders hold, dicts that are the same in Python and in JSON.

A dict with keys that older results or other requests lack has two classes, the second with these keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypedDict

if TYPE_CHECKING:
    from PIL import Image

# any value of JSON, and an object of it
JSONValue: TypeAlias = "None | bool | int | float | str | list[JSONValue] | dict[str, JSONValue]"
JSONObject: TypeAlias = dict[str, "JSONValue"]


# --- scores


class Score(TypedDict):
    """A mean over pairs and its interval, whose ends are None where there is none."""

    value: float | None
    low: float | None
    high: float | None


class TextScores(TypedDict):
    """Scores of what was read of one run or of a swap at some sites, on n pairs and seeds."""

    exact_target: Score
    exact_source: Score
    edit_target: Score
    edit_source: Score
    f1_target: Score
    f1_source: Score
    n: int


class Scores(TextScores, total=False):
    """The same with what only some readers and models give, see `localization.scores.all_scores`."""

    ssim: Score
    mse: Score
    psnr: Score
    mse_uint8_wrapped: Score
    psnr_uint8_wrapped: Score
    background: Score
    masked: Score
    disagreement: Score
    n_background: int
    texts: list[TextScores]


class ScoreByChance(Score):
    """A score with its chance level, None where that is not known."""

    chance: float | None


class ReadingScores(TypedDict):
    """Scores of readings against wanted words, see `metrics.scores_of_readings`."""

    n: int
    normaliser: str
    empty: ScoreByChance
    word_accuracy: ScoreByChance
    one_minus_ned: ScoreByChance
    sample_f1: ScoreByChance
    cer: ScoreByChance
    f1: ScoreByChance
    best_line_accuracy: ScoreByChance
    best_line_one_minus_ned: ScoreByChance


class ReadScores(TypedDict):
    """A reading with its scores against the texts of both sides, see `prompts.pairs.Pair`."""

    read: str
    precision_source: float
    recall_source: float
    exact_source: float
    edit_source: float
    precision_target: float
    recall_target: float
    exact_target: float
    edit_target: float


# --- records


class ReadPicture(ReadScores):
    """A picture, or its path in the run folder, with what was read in it."""

    image: Image.Image | str


class PictureEntry(ReadPicture, total=False):
    """The same with scores beside its source's picture, and what only some readers and models give."""

    masked: float
    ssim: float
    mse: float
    mse_uint8_wrapped: float
    psnr_uint8_wrapped: float
    no_background: str
    background: float
    disagreement: float
    unconfirmed: str
    texts: list[ReadScores]
    boxes: list[list[float]]
    lettering: list[JSONObject]
    seconds: float
    generations: int


class Record(TypedDict):
    """What was made of a pair and seed, its pictures by row name."""

    id: str
    pair: int
    seed: int
    pictures: dict[str, PictureEntry]


# --- results


class ListedPair(TypedDict):
    """Prompts and words of a pair."""

    source: str
    target: str
    word: str
    target_word: str


class Baselines(TypedDict):
    """Scores of the run without a swap and of the whole target run."""

    source: Scores
    target: Scores


class Chance(TypedDict):
    """F1 of readings that are each another pair's word, None of a single pair."""

    f1_source: float | None
    f1_target: float | None


class Status(TypedDict):
    """What became of a site, on how many pairs."""

    state: str
    pairs: int


class ScreenedStatus(Status, total=False):
    """The same with what screened it out, by which score."""

    by: str
    value: float
    low: float | None
    high: float | None


class Indication(TypedDict, total=False):
    """What an indicator says of a site, on how many pairs."""

    share: Score
    norm: Score
    drop: Score
    pairs: int


class SiteFacts(TypedDict):
    """Facts of a site or a set of sites."""

    site: int | str
    group: list[int]
    name: str
    kind: str
    parameters: int
    status: ScreenedStatus


class ScreenedSite(SiteFacts, total=False):
    """The same with what a screening by an indicator says."""

    contribution: Indication
    attribution: Indication


class SiteScores(ScreenedSite, Scores):
    """The same with its scores, of a site that was tried and not screened out."""


class GrowthStep(TypedDict):
    """One step of growing the responsible set, see `localization.search.Step`."""

    added: list[int]
    group: list[int]
    pairs: int
    looked: int
    score: Score
    gain: Score
    kept: bool


class ResponsibleSet(TypedDict):
    """Sites of the responsible set, its F1, and the steps towards it."""

    sites: list[int]
    score: Score
    steps: list[GrowthStep]


class Gap(Score):
    """By how much the last site that a screening kept was better than the next."""

    by: str
    pairs: int
    kept: int | str
    next: int | str


class OpenQuestion(TypedDict):
    """A comparison that the pairs leave open, see `localization.unsettled`."""

    question: str
    site: int | str
    against: int | str | None
    pairs: int
    difference: Score
    more: int | None


class Generations(TypedDict):
    """Rows that a search generated, beside one for the target and one for each site."""

    made: int
    one_by_one: int


class StartPoint(Scores):
    """Scores of a swap that begins at one step."""

    start: int
    timestep: float
    sigma: float


class StartCurve(TypedDict):
    """What `start_curve` gives."""

    sites: list[int]
    curve: list[StartPoint]
    chosen: int
    generations: float


class HeadStep(TypedDict):
    """One head taken away, see `localization.heads.Taken`."""

    unit: list[int]
    left: Score
    group: list[list[int]]
    alone: Score
    missing: Score


class HeadSearch(TypedDict):
    """What `head_search` gives."""

    sites: list[int]
    heads: list[list[int]]
    steps: list[HeadStep]


class EachWord(TypedDict):
    """What each word exchanged alone comes to, see `localization.word_by_word`."""

    groups: list[JSONObject]
    donors: list[JSONObject]
    swaps: list[JSONObject]
    places: list[JSONObject]
    generations: int


class Reported(TypedDict):
    """What every localisation's result holds, see `report.result`."""

    schema_version: int
    model: str
    parameters: int
    pairs: int
    seeds: list[int]
    steps: int
    guidance: float | JSONObject
    start: int
    branch: str
    ocr: JSONObject
    over_reading: JSONObject | None
    mode: str
    baselines: Baselines
    chance: Chance
    sites: list[ScreenedSite | SiteScores]
    ranked: list[int | str]
    set: ResponsibleSet | None
    gaps: list[Gap]
    generations: Generations
    pairs_list: list[ListedPair]


class LocalizationResult(Reported, total=False):
    """The same with what was asked for beside the sites, and what older results lack."""

    what: str
    unsettled: list[OpenQuestion]
    start_curve: StartCurve
    head_search: HeadSearch
    each_word: EachWord


class ComparedPair(TypedDict):
    """Prompts and words of a pair that was edited."""

    source: str
    target: str
    words: list[str]


class PairedDifference(TypedDict, total=False):
    """Difference of a score from the first method's, see `metrics.compared`."""

    value: float
    low: float | None
    high: float | None
    p: float
    n: int
    differ: int


class MethodScores(Scores, total=False):
    """Scores of a method of editing, what it took, and how it differs from the first."""

    seconds: float
    generations: float
    more_than_first: dict[str, PairedDifference]


class ComparisonResult(TypedDict):
    """What `compare` found of several methods."""

    schema_version: int
    model: str
    ocr: JSONObject
    over_reading: JSONObject | None
    steps: int
    guidance: float | JSONObject
    seeds: list[int]
    pairs: int
    pairs_list: list[ComparedPair]
    chance: Chance
    source: MethodScores
    methods: dict[str, MethodScores]
    first: str
