"""Text from outside, such as names of folders and messages of environments, made safe to show.

Each format has one function here, and whatever writes the format calls it.

>>> print(terminal("a\\x1b[31m"), markdown("a|b"), csv_cell("=1+1"), latex("50 %"), plot("$x"))
a\\x1b[31m a\\|b '=1+1 50 \\% \\$x
"""

import re

LATEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    **{
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "|": r"\textbar{}",
    },
    **{
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "†": r"$^\dagger$",
        "‡": r"$^\ddagger$",
    },
}
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""how a text begins that a spreadsheet takes for a formula"""


def terminal(text: str) -> str:
    """Control characters as Python writes them, so that they move no cursor and change no colour;
    line ends stay."""
    written = lambda c: c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode()
    return "".join(map(written, text))


def line(text: str) -> str:
    """As `terminal`, with line ends written out, too."""
    return terminal(text).replace("\n", r"\n")


def markdown(text: str) -> str:
    """A text in Markdown: no HTML, no cell or line of its own, no link and no emphasis."""
    shown = line(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|`*]|(?<=\])\()", r"\\\1", shown)


def csv_cell(text: str) -> str:
    """A text in a CSV file, with a ' before what a spreadsheet would compute."""
    shown = line(text)
    return f"'{shown}" if text.startswith(FORMULA) or shown.startswith(FORMULA) else shown


def latex(text: str) -> str:
    """A cell of a LaTeX table."""
    return "".join(LATEX.get(character, character) for character in line(text))


def plot(text: str) -> str:
    """A text in a picture, with its line ends: matplotlib takes what is between two $ for
    mathematics."""
    return terminal(text).replace("$", r"\$")
