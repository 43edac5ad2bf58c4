"""Random mutations of the shipped option files: check finds what it finds, and never fails itself."""

import random

import pytest

import spinsr.archs  # noqa: F401
from spinsr.check import is_training, quick
from spinsr.training import option_files
from spinsr.utils.errors import OptionError

pytestmark = pytest.mark.slow

TEXTS, TREES = 100, 100
SNIPPETS = [
    b'\n',
    b' ',
    b':',
    b'- ',
    b'[',
    b']',
    b'{',
    b'}',
    b'&a ',
    b'*a',
    b'!!float ',
    b'!!int ',
    b'"',
    b"'",
    b'#',
    b'\t',
]
SNIPPETS += [b'~', b'\0', b'\xff', b'9' * 5000, b'1e999', b'.nan', b'-1', b'<<: ', b'? ', b'---\n', b'|', b'%', b'0x1']
VALUES = [None, True, 0, -1, 1, 10**17, 2.5, 5e3, float('nan'), float('inf'), '', 'x', '{}', '{}{}', '../x', '/x']
VALUES += ['\0', [], [None], ['x', 1], {}, {'a': 1}, {'type': 'L1Loss'}, [[1]], '2e-4', 'SPIN', b'x']


def looked_at(options):
    """Both uses of the quick checks, every finding taken."""
    return [list(quick(options, is_train=is_train)) for is_train in {is_training(options), True, False}]


def mutated_text(text, rng):
    text = bytearray(text)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text))
        kind = rng.randrange(4)
        if kind == 0:
            text[start : start + rng.randint(1, 40)] = b''
        elif kind == 1:
            text[start:start] = rng.choice(SNIPPETS)
        elif kind == 2:
            text[start] = rng.randrange(256)
        else:
            source = rng.randrange(len(text))
            text[start:start] = text[source : source + rng.randint(1, 200)]
        text = text or bytearray(b' ')
    return bytes(text)


def places(options):
    """All (section, key) of an option file."""
    for key, value in options.items():
        yield options, key
        if isinstance(value, dict):
            yield from places(value)


def mutate_tree(options, rng):
    for _ in range(rng.randint(1, 3)):
        found = list(places(options))
        if not found:
            return
        section, key = rng.choice(found)
        kind = rng.randrange(4)
        if kind == 0:
            del section[key]
        elif kind == 1:
            section[f'{key}x'] = section.pop(key)
        elif kind == 2:
            other, name = rng.choice(found)
            section[key] = other.get(name)
            if section[key] is section or isinstance(section[key], dict):
                section[key] = dict.fromkeys(section[key], 1)
        else:
            section[key] = rng.choice(VALUES)


def test_no_text_makes_the_reader_or_the_check_fail(tmp_path, capsys):
    rng, files, path = random.Random(0), list(option_files.shipped().values()), tmp_path / 'x.yml'
    refused = found = 0
    for _ in range(TEXTS):
        path.write_bytes(mutated_text(rng.choice(files).read_bytes(), rng))
        try:
            options = option_files.read(path)
        except OptionError as error:
            refused += 1
            assert '\n' not in str(error)
        else:
            found += any(map(any, looked_at(options)))
    with capsys.disabled():
        print(f'\n{TEXTS} texts: {refused} refused, {found} with findings')
    assert refused and found


def test_no_value_makes_the_check_fail(capsys):
    rng, files = random.Random(1), list(option_files.shipped().values())
    found = 0
    for _ in range(TREES):
        options = option_files.read(rng.choice(files))
        mutate_tree(options, rng)
        found += any(map(any, looked_at(options)))
    with capsys.disabled():
        print(f'\n{TREES} option files: {found} with findings')
    assert found
