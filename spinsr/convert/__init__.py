"""Checkpoints: the authors' files of SPIN, SAN and RCAN, BasicSR's RCAN, and ours, each into the others.

`convert_file` is the whole of it, from file to file; `convert_state_dict` (to ours), `to_official` and `to_basicsr` are
its parts. Reading never executes anything that a file holds.
"""

from spinsr.convert.checkpoint import ENDINGS, read_checkpoint, unwrap, write_checkpoint
from spinsr.convert.file import FORMS, Conversion, convert_file
from spinsr.convert.names import ARCHS
from spinsr.convert.state_dicts import convert_state_dict, detect_arch, to_basicsr, to_official

__all__ = [
    'ARCHS',
    'ENDINGS',
    'FORMS',
    'Conversion',
    'convert_file',
    'convert_state_dict',
    'detect_arch',
    'read_checkpoint',
    'to_basicsr',
    'to_official',
    'unwrap',
    'write_checkpoint',
]
