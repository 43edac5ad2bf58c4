"""Checkpoints: the authors' files, BasicSR's and ours, each into the others; and what is known of each network.

`convert_file` does it from file to file; `convert_state_dict` (to ours), `to_official` and `to_basicsr` are its parts.
Reading never executes anything that a file holds. Networks are known by their `ArchFormat`.
"""

from spinsr.convert.checkpoint import ENDINGS, check_finite, read_checkpoint, unwrap, write_checkpoint
from spinsr.convert.file import FORMS, Conversion, convert_file
from spinsr.convert.registry import ArchFormat, find_format, formats, get_format, register_format
from spinsr.convert.state_dicts import convert_state_dict, detect_arch, to_basicsr, to_official

__all__ = [
    'ENDINGS',
    'FORMS',
    'ArchFormat',
    'Conversion',
    'check_finite',
    'convert_file',
    'convert_state_dict',
    'detect_arch',
    'find_format',
    'formats',
    'get_format',
    'read_checkpoint',
    'register_format',
    'to_basicsr',
    'to_official',
    'unwrap',
    'write_checkpoint',
]
