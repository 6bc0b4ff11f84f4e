"""What the page says of every run."""

MODES = {
    "staged": "all swapped on a few pairs, those that may matter on every pair",
    "contribution": "all ranked by what they give the picture without a swap, those that stood out tried by swaps",
    "attribution": "all ranked by a gradient estimate, those that stood out tried by swaps",
}

SCORES = {
    "swap": "F1 towards the target",
    "contribution": "share of what attention gives",
    "attribution": "estimated share of the change by swaps",
}

SCREENED = {
    "swap": """<p>A site left out by its F1 towards the target was swapped on the first pairs alone, and its score there lay
clearly below those kept.</p>""",
    "contribution": """<p>A site left out by its share was not swapped alone. In the source's own run the word's tokens gave clearly
less to the picture there than at the sites kept: their share of all that attention gives the picture. With others it may join the set, unless its share is next to nothing:
less than a fiftieth of the largest.</p>""",
    "attribution": """<p>A site left out by its share was not swapped alone. In the source's own run gradients estimate, at each
step, how far a swap there would move what the model predicts towards the target: clearly less than at the sites kept. With
others it may join the set, unless its share is next to nothing: less than a fiftieth of the largest.</p>""",
}

QUESTION = """<p>A text-to-image model reads its prompt through many attention layers, here called <b>sites</b>. Which of
them carry the {what}?</p>
<p>A <b>source</b> prompt makes a picture. Then the same picture is made again, but at one site the
model reads a <b>target</b> prompt, which asks for another {what}. If the target's {what} appears and all else stays as
it was, the {what} passes through that site. A program reads the {what}s off the pictures; nobody judges by eye.</p>"""

ALONE = """<div class="equation">picture &larr; softmax( Q <b>K&prime;</b><sup>&#8868;</sup> / &radic;D ) <b>V&prime;</b><br>
<b>K&prime;, V&prime;</b> = keys and values of the <b>target</b>'s text, in place of the source's own</div>"""

BESIDE = """<div class="equation">picture &larr; softmax( Q [ K<sub>image</sub> ; <b>K&prime;<sub>text</sub></b> ]<sup>&#8868;</sup>
/ &radic;D ) [ V<sub>image</sub> ; <b>V&prime;<sub>text</sub></b> ]<br>
<b>K&prime;<sub>text</sub>, V&prime;<sub>text</sub></b> = keys and values of the <b>target</b>'s text, in place of the source's
own</div>"""

SYMBOLS = """<p class="note">At a site every part of the picture asks (queries Q), the text answers (keys K say where, values V
what), and D is the width of an attention head. <b class="swap">Orange</b> is what the swap exchanges, from the
target's own run at the same step; queries and image are the picture's own, and all other sites read the source's
text.</p>"""

CHOSEN = "The responsible set: sites are added best first, for as long as another is a clear gain."
EMPTY = "No site is clearly better than no swap at all; this is the best of them."
BEST = "The best single site; a set is grown from single sites on two prompt pairs or more."
COUNTED = """Sites are numbered in the order they run, as in the paper; the share counts the projections that make
the text's keys and values."""

RAMP = """<p>How much of the target's {what} was read off the picture, swapping at one site alone (F1, the mean over
seeds). <b>Click a number</b> for the pictures and readings behind it. What agrees by chance counts too, such as letters
that two words share: compare with the first column, which has no swap.</p>
<p class="note">0, nothing of it<span class="ramp"></span>1, all of it</p>"""

COLUMNS = """<p class="note">Mean [95 % interval over prompt pairs]. Exact target: the share of pictures that read
exactly as the target's {what}. F1: how far what was read agrees with the target's, or the source's,
{what}: words letter by letter, anything else wholly or not at all. bg SSIM and PSNR (dB): how alike
the background is to the source's, 1 and infinity for equal. n: pictures.</p>"""

LEGEND = """<p>Under each picture what was read: <span class="read target">blue</span> where it is the target's {what},
<span class="read">plain</span> where it is the source's, <span class="read other">grey</span> otherwise. What the
headline names is framed, and the others follow in the order they run.</p>"""

STARTS = {"F1 towards the target": "f1_target", "background as in the source (SSIM)": "ssim"}
HEADS = {"F1 of the heads taken, alone": "alone", "F1 of the heads left": "left"}
