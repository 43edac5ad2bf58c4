"""Words for messages."""

import difflib
from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of an error line: the known word that is most like a wrong one, else all known words."""
    known = [str(known) for known in words]
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), lower, n=1, cutoff=0.5)
    if close:
        return f'did you mean {lower[close[0]]!r}?'
    return f'known: {", ".join(known)}' if known else 'nothing is known'


def printable(text: object) -> str:
    r"""A text from a file or its name, safe to show on a terminal: one line, without control sequences.

    Example:
        >>> printable('evil\x1b[2J\nname')
        'evil\\x1b[2J\\nname'
    """
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in str(text))
