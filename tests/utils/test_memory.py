import os
from types import SimpleNamespace

import psutil
import pytest

from spinsr.utils import memory

GB = 2**30


@pytest.mark.parametrize(
    ('files', 'expected'),
    [
        ({}, 7 * GB),
        ({'memory.max': 'max\n', 'memory.stat': 'anon 5\nfile 7\n'}, 7 * GB),
        ({'memory.max': '1000\n', 'memory.stat': 'file 7\nanon 300\n'}, 700),
        ({'memory.max': f'{9 * GB}\n', 'memory.stat': f'anon {GB}\n'}, 7 * GB),
        ({'memory.max': '100\n', 'memory.stat': 'anon 300\n'}, 0),
        ({'memory/memory.limit_in_bytes': '1000\n', 'memory/memory.stat': 'cache 50\ntotal_rss 300\n'}, 700),
        ({'memory/memory.limit_in_bytes': f'{2**63 - 4096}\n', 'memory/memory.stat': 'total_rss 300\n'}, 7 * GB),
    ],
    ids=['machine', 'no_limit', 'container', 'large_container', 'full_container', 'version_1', 'version_1_no_limit'],
)
def test_available(tmp_path, monkeypatch, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, '_CGROUPS', tmp_path)
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(available=7 * GB))
    assert memory.available() == expected


def test_peak_stays_when_memory_is_freed():
    before = memory.peak_resident()
    block = bytearray(os.urandom(1)) * (64 * 2**20)
    held = memory.resident()
    del block
    assert memory.peak_resident() >= max(before, held - 2**20) > 2**20


@pytest.mark.parametrize('kind', ['RLIMIT_DATA', 'RLIMIT_AS'])
def test_a_limit_below_what_torch_needs_is_refused_before_the_import(kind, monkeypatch):
    resource = pytest.importorskip('resource', reason='Windows has no such limits')
    limits = dict.fromkeys((resource.RLIMIT_DATA, resource.RLIMIT_AS), resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, 'getrlimit', lambda kind: (limits[kind], resource.RLIM_INFINITY))
    memory.require_for_torch()
    limits[getattr(resource, kind)] = 150 * 10**6
    with pytest.raises(MemoryError, match=r'limited to 150 MB \(ulimit -[dv]\), and importing torch takes'):
        memory.require_for_torch()


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (MemoryError(), True),
        (ImportError('libtorch.so: failed to map segment from shared object'), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(12, 'Cannot allocate memory'), True),
        (RuntimeError('shapes differ'), False),
        (ImportError('No module named torch'), False),
    ],
    ids=['python', 'library', 'thread', 'system', 'other', 'other-import'],
)
def test_refusals_of_the_system_are_told_from_other_errors(error, expected):
    assert memory.ran_out(error) is expected


@pytest.mark.parametrize(
    ('before', 'imported', 'expected'), [(None, False, '1'), ('0', False, '0'), (None, True, None)], ids=str
)
def test_huge_pages(before, imported, expected, monkeypatch):
    environment = {} if before is None else {'THP_MEM_ALLOC_ENABLE': before}
    monkeypatch.setattr(memory.os, 'environ', environment)
    monkeypatch.setattr(memory.sys, 'modules', {'torch': None} if imported else {})
    memory.use_huge_pages()
    assert environment.get('THP_MEM_ALLOC_ENABLE') == expected
