"""Lists of images: the files that `meta_info_file` names."""

import os
from pathlib import Path


def list_problem(path: str) -> str:
    """What is wrong with a meta_info_file, of which BasicSR takes the first word of every line; '' if nothing is."""
    try:
        lines = Path(os.path.expanduser(path)).read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError:
        return f'{path} is not a text file in UTF-8'
    except OSError as problem:
        return f'{path} cannot be read: {problem.strerror or problem}'
    if not lines:
        return f'{path} is empty'
    if lines[0].startswith('\ufeff'):
        return f'{path} begins with a byte order mark, which BasicSR reads as part of a name: save it without'
    for number, line in enumerate(lines, 1):
        if not line.strip():
            return f'{path}, line {number} is empty, which BasicSR takes for an image without a name: delete it'
    return ''
