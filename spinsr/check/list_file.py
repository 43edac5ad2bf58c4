"""Lists of images: the files that `meta_info_file` names."""

import os
from pathlib import Path


def list_problem(path: str) -> str:
    """What is wrong with a meta_info_file, of which BasicSR takes the first word of every line; '' if nothing is."""
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding='utf-8')
    except UnicodeDecodeError:
        return f'{path} is not a text file in UTF-8'
    except OSError as problem:
        return f'{path} cannot be read: {problem.strerror or problem}'
    if '\0' in text:
        return f'{path} is not a text file in UTF-8'
    if not text:
        return f'{path} is empty'
    lines = text.removesuffix('\n').split('\n')
    if lines[0].startswith('\ufeff'):
        return f'{path} begins with a byte order mark, which BasicSR reads as part of a name: save it without'
    for number, line in enumerate(lines, 1):
        if not line.split(' ')[0].strip():
            what = 'begins with a space' if line.strip() else 'is empty'
            return f'{path}, line {number} {what}, which BasicSR takes for an image without a name: delete it'
    return ''
