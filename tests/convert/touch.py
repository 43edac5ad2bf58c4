"""Code in a file, for tests that it never runs."""

from pathlib import Path


class Touch:
    """Unpickling it makes a file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')
