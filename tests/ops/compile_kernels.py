"""Compiles every kernel for an NVIDIA GPU, which needs none; run by test_triton.py without TRITON_INTERPRET.

Prints for each whether there is a binary, and what it should not use: TF32 and atomics.

The interpreter takes more than the compiler: variables whose shape changes in a loop, for one.
"""

import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spinsr.ops.association import kernels as cells
from spinsr.ops.attention import kernels as attention
from spinsr.ops.common.triton_launch import NUM_WARPS

INDICES = ('p_rows', 'p_neighbors', 'p_pixels')
HALF = ('p_q', 'p_k', 'p_v', 'p_x')
CELL = {'C': 40, 'BLOCK_C': 64, 'BLOCK_P': cells.BLOCK_P}
ROWS = {
    'HEADS': 2,
    'D': 12,
    'E': 20,
    'SCALE': 12**-0.5,
    'BLOCK_T': attention.BLOCK_T,
    'BLOCK_D': 16,
    'BLOCK_E': 32,
}
JOBS = {
    'first_round': (cells.associate_fwd_kernel, {**CELL, 'IS_LAST': False}, ()),
    'last_round': (cells.associate_fwd_kernel, {**CELL, 'IS_LAST': True}, ()),
    'pool': (cells.pool_kernel, {**CELL, 'IS_BACKWARD': False}, HALF),
    'pool_backward': (cells.pool_kernel, {**CELL, 'IS_BACKWARD': True}, HALF),
    'attend': (attention.attend_rows_fwd_kernel, ROWS, HALF),
    'attend_backward': (attention.attend_rows_bwd_kernel, ROWS, HALF),
}


def type_of(name: str, half: tuple[str, ...]) -> str:
    if not name.startswith('p_'):
        return 'i32'
    return '*i64' if name in INDICES else '*bf16' if name in half else '*fp32'


def main() -> None:
    for job, (kernel, constants, half) in JOBS.items():
        constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
        types = {name: 'constexpr' if name in constants else type_of(name, half) for name in kernel.arg_names}
        source = ASTSource(kernel, types, constants)
        compiled = triton.compile(source, target=GPUTarget('cuda', 80, 32), options={'num_warps': NUM_WARPS})
        found = sorted(set(re.findall(r'tf32|\b(?:atom|red)\.', compiled.asm['ptx'])))
        sys.stdout.write(f'{job}: {len(compiled.asm["cubin"]) > 0} {found}\n')


if __name__ == '__main__':
    main()
