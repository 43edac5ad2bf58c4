"""Text for messages and reports."""

import difflib
from collections.abc import Iterable, Sequence

# How alike a word and a known one must be to suggest it. Names of networks are short and many, and a foreign one is
# rather of another package than misspelt: SPINN is like SPIN, MyNet is not like SpyNet.
SIMILAR_KEY, SIMILAR_NAME = 0.5, 0.75


def closest(word: str, words: Iterable[str], similar: float = SIMILAR_NAME) -> str | None:
    """The known word that a wrong one is most like, whatever the case of its letters; None if none is similar."""
    lower = {str(known).lower(): str(known) for known in words}
    close = difflib.get_close_matches(str(word).lower(), lower, n=1, cutoff=similar)
    return lower[close[0]] if close else None


def nearest(word: str, words: Iterable[str], similar: float = SIMILAR_KEY) -> str:
    """The end of an error line: the known word that is most like a wrong one, else all known words."""
    known = [str(known) for known in words]
    if close := closest(word, known, similar):
        return f'did you mean {close!r}?'
    return f'known: {", ".join(known)}' if known else 'none exist'


def printable(text: object) -> str:
    r"""A text from a file or its name, safe to show on a terminal: one line, without control sequences.

    Example:
        >>> printable('evil\x1b[2J\nname')
        'evil\\x1b[2J\\nname'
    """
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in str(text))


def markdown_table(rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, its columns padded to one width; the first row is the header. Cells are `printable`.

    Example:
        >>> print(markdown_table([('scale', 'PSNR'), ('x2', 38.2)]), end='')
        | scale | PSNR |
        | ----- | ---- |
        | x2    | 38.2 |
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ['-' * width for width in widths])
    lines = (' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return ''.join(f'| {line} |\n' for line in lines)
