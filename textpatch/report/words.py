"""Sentences of the page that are the same for every run, where {what} is what the pairs differ in."""

# --- under the headline

READING = """<p class="note">Numbers in brackets are 95&nbsp;% intervals over the prompt pairs.
<b>F1</b> says how far what was read agrees with the target's {what}, from 0 for nothing of it
to 1 for all of it and nothing else.</p>"""

CHANCE = """<p class="note">By chance F1 is {level}: that is what readings of the other pairs' {what}s
would score.</p>"""

# --- what was asked

QUESTION = """<p>A text-to-image model reads its prompt through many attention layers, here
called <b>sites</b>. Which of them carry the {what}?</p>
<p>A <b>source</b> prompt makes a picture. Then the same picture is made again, but at one site
or a few the model reads a <b>target</b> prompt, which asks for another {what}. This is a
<b>swap</b>. If the target's {what} appears and all else stays as it was, the {what} passes there. A
program reads the {what}s off the pictures, so that nobody judges by eye.</p>"""

# by mode
MODES = {
    "staged": "each swapped on the first pairs, and those that may matter on every pair",
    "contribution": (
        "all ranked by what they give the picture without a swap, and those that stood out tried by swaps"
    ),
    "attribution": "all ranked by a gradient estimate, and those that stood out tried by swaps",
}
EXHAUSTIVE = "each on every pair"

# links to what a run folder holds
BESIDE_THE_PAGE = (
    "results.json",
    "results.csv",
    "records/",
    "images/",
    "contact_sheet.png",
    "heatmap.png",
    "manifest.json",
)

# --- what is swapped

ALONE = """<div class="equation">picture &larr; softmax( Q <b>K&prime;</b><sup>&#8868;</sup> / &radic;D )
<b>V&prime;</b><br>
<b>K&prime;, V&prime;</b> = keys and values of the <b>target</b>'s text,
in place of the source's own</div>"""

BESIDE = """<div class="equation">picture &larr; softmax( Q [ K<sub>image</sub> ;
<b>K&prime;<sub>text</sub></b> ]<sup>&#8868;</sup> / &radic;D )
[ V<sub>image</sub> ; <b>V&prime;<sub>text</sub></b> ]<br>
<b>K&prime;<sub>text</sub>, V&prime;<sub>text</sub></b> = keys and values of the <b>target</b>'s text,
in place of the source's own</div>"""

SYMBOLS = """<p class="note">At a site every part of the picture asks with a query Q. Each token
of the text answers with a key K, which says how well it fits the question, and a value V, which
is what it gives. D is the width of an attention head. <b class="swap">Orange</b> is what the
swap exchanges. It comes from the target's own run at the same step. Queries and image stay the
picture's own, and all other sites read the source's text.</p>"""

# --- the layers found

CHOSEN = """The responsible set: sites are added, the one that adds most next, as long as each
is a clear gain."""
EMPTY = "No site is clearly better than no swap at all. This is the best of them."
BEST = """The best of all that was tried. No set of sites was sought: that takes sites tried one
by one, and {fewest} different prompt pairs or more."""
COUNTED = """Sites are numbered in the order they run. The share counts the projections that
make the text's keys and values."""

# by kind of site
KINDS = {
    "cross": "At a site of kind cross the picture reads the text alone.",
    "added": (
        "At a site of kind added the picture reads the text beside itself, through keys and values added "
        "for the text."
    ),
    "joint": (
        "At a site of kind joint picture and text read each other, each with projections of its own."
    ),
    "single": (
        "At a site of kind single picture and text are one sequence and share their projections."
    ),
}

# --- the evidence

RAMP = """<p>How far the {what} read off a picture is the target's, swapping at what heads the
column and nowhere else (F1, averaged over seeds). <b>Click a number</b> for the pictures and
readings behind it. Agreement by chance counts too, such as letters that two words share, so
compare with the first column, which has no swap.</p>
<p class="note">0, nothing of it<span class="ramp"></span>1, all of it</p>"""

LEGEND = """<p>Under each picture stands what was read: <span class="read target">blue</span>
where it is the target's {what}, <span class="read">plain</span> where it is the source's, <span
class="read other">grey</span> otherwise. Framed is what the headline names. The others follow
in the order they run.</p>"""

COLUMNS = """<ul class="note">
<li>Share: of the denoiser's parameters that make the text's keys and values.</li>
<li>Exact target: share of the pictures that read exactly as the target's {what}.</li>
<li>F1 target, F1 source: how far what was read agrees with the target's and the source's
{what}. Words are compared letter by letter, anything else is right or wrong as a whole.</li>
<li>bg SSIM, PSNR (in dB): likeness of the background to the source's, 1 and infinity where they
are equal.</li>
<li>Chance level: F1 of readings that are each another pair's {what}.</li>
<li>n: number of pictures.</li>
</ul>"""

LINES = """<p class="note">Each quoted text has a line of its own in the picture, and what was
read there is compared with the texts of that line alone. Where one line reads as the target and
the other as the source, the swap carried one {what} and not the other.</p>"""

# --- how the search went

# by the score that a site was judged by
SCORES = {
    "swap": "F1 towards the target",
    "contribution": "share of what attention gives",
    "attribution": "estimated share of the change by swaps",
}

_MAY_JOIN = """Together with others it may still join the set, unless its share is next to
nothing, which is less than a fiftieth of the largest."""

# by the score that left a site out
SCREENED = {
    "swap": """<p>What was left out by its F1 towards the target was swapped on the first pairs
alone. Its score there lay clearly below those kept.</p>""",
    "contribution": f"""<p>A site left out by its share of what attention gives was not swapped
alone. In the source's own run the word's tokens gave clearly less to the picture there than at
the sites kept, as a share of all that attention gives the picture. {_MAY_JOIN}</p>""",
    "attribution": f"""<p>A site left out by its estimated share was not swapped alone. In the
source's own run gradients estimate, at each step, how far a swap there would move the model's
prediction towards the target. That was clearly less than at the sites kept. {_MAY_JOIN}</p>""",
}

GROWTH = """<p class="note">Each row adds to the sites kept so far. A gain is clear if its whole
interval lies above zero.</p>"""

# --- curves, by the name of their line

STARTS = {"F1 towards the target": "f1_target", "background as in the source (SSIM)": "ssim"}
HEADS = {"F1 of the heads taken, alone": "alone", "F1 of the heads left": "left"}

MAPS = (
    "<p>Colour shows how much attention a place of the source's picture gives the quoted word (received), "
    "and how much the word gives the place where the text asks as well (given). They are means over heads "
    "and steps, from the least to the largest value of each map. Whether what is read changes the picture, "
    "only the swaps say.</p>"
)
