"""An option file against what it will be used for: before the first iteration, all that would fail or mislead later.

`quick` and `files` look at the file, the registries and the machine in less than a second; train and test run them.
`check` adds the images, the weights and the memory. Every check gives `Finding`s.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from spinsr.check import keys, machine, registries, values
from spinsr.check.finding import Finding, section, stop_at_error
from spinsr.check.keys import is_training
from spinsr.check.machine import files
from spinsr.check.values import with_whole_numbers
from spinsr.models.registration import register

__all__ = ['Finding', 'check', 'files', 'is_training', 'quick', 'stop_at_error', 'with_whole_numbers']

_ORDER = ('error', 'warning', 'note')


def quick(options: Mapping[str, Any], *, is_train: bool, launcher: str = 'none') -> Iterator[Finding]:
    """Finds what the option file, the registries and the devices tell.

    The checks run while the findings are taken, the cheapest first: who stops at the first error waits for no more.

    Args:
        options: The option file.
        is_train: For training, else for testing.
        launcher: 'none', 'pytorch' or 'slurm'.

    Raises:
        OptionError: If BasicSR cannot be imported.
    """
    yield from keys.numbers(options)
    options = keys.with_numbers(options)
    yield from keys.structure(options, is_train=is_train)
    register()
    options = values.with_whole_numbers(options)
    yield from keys.unknown(options)
    yield from registries.types(options)
    yield from values.kinds(options)
    yield from values.agreement(options, is_train=is_train, launcher=launcher)
    yield from machine.devices(options, launcher)


def check(
    options: Mapping[str, Any], *, is_train: bool | None = None, decode: bool = False, progress: bool = False
) -> list[Finding]:
    """Finds all that would fail or mislead when the option file is used.

    Relative paths are relative to the working directory. Nothing is written, and nothing in a weights file is executed.

    Args:
        options: The option file, as `spinsr.training.option_files.load` gives it.
        is_train: For training, else for testing; None decides by the sections.
        decode: Decode every image, not only its header.
        progress: Show a progress bar for the images.

    Returns:
        The findings, errors first, then warnings, then notes.

    Raises:
        OptionError: If BasicSR cannot be imported.
    """
    # After register(), which makes BasicSR importable.
    if is_train is None:
        is_train = is_training(options)
    found = list(quick(options, is_train=is_train))
    options = values.with_whole_numbers(keys.with_numbers(options))
    from spinsr.check.images import images
    from spinsr.check.memory import memory
    from spinsr.check.weights import weights

    resumes = is_train and bool(section(options, 'path').get('resume_state'))
    found += files(options, resumes=resumes)
    largest = None
    for where, seen in images(options, decode=decode, progress=progress):
        found += seen.findings
        if seen.largest and where != 'datasets:train':
            largest = max(largest or seen.largest, seen.largest, key=lambda size: size[0] * size[1])
    found += registries.parameter_names(options, of_others=True)
    found += weights(options, is_train=is_train)
    if not any(finding.level == 'error' and finding.key.startswith('network_g') for finding in found):
        found += memory(options, largest, is_train=is_train)
    return sorted(dict.fromkeys(found), key=lambda finding: _ORDER.index(finding.level))
