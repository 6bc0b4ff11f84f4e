"""Modules of the core that bear a name of the standard library stand in nobody's way."""

import subprocess
import sys

import textpatch.html


def test_the_standard_library_s_html_stays():
    """With textpatch.html imported, `import html` gives the standard library's module, in any order."""
    code = "import {}, {}, sys; print(sys.modules['html'].__file__); print(sys.modules['html'].escape('<'))"
    for names in (("html", "textpatch.html"), ("textpatch.html", "html")):
        file, escaped = subprocess.check_output(
            [sys.executable, "-c", code.format(*names)], text=True
        ).splitlines()
        assert escaped == "&lt;" and file != textpatch.html.__file__
