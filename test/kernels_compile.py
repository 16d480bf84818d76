# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Compiles every kernel for every supported GPU, without one, and prints what it needs.

test_kernels.py runs it in a process of its own. A line: capability, kernel, bytes of shared
memory, bytes of stack and local memory (spilled registers).
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vla_prune_ros.runtime.kernels import (
    attention,
    compact,
    gelu,
    jpeg,
    layer_norm,
    linear_small,
    mark_best,
    resize,
    rms_norm,
    rope,
    small,
    swiglu,
)

_STRIDES = (
    'q_head', 'q_row', 'k_head', 'k_row', 'v_head', 'v_row', 'out_head', 'out_row', 'width',
    'x_row', 'row_size', 'table_row', 'table_part', 'half',
)  # fmt: skip
# Kernel -> constants at the published sizes, warps. Pointers are bfloat16 unless named below.
KERNELS = [
    (rms_norm.add_rms_norm_kernel, {'HAS_DELTA': True, 'BLOCK': 4096}, 8),
    (rope.rope_kernel, {'HEADS': 32, 'HALF': 64}, 4),
    (swiglu.swiglu_kernel, {'BLOCK': 1024}, 4),
    (layer_norm.add_scale_layer_norm_kernel,
     {'HAS_DELTA': True, 'HAS_SCALE': True, 'BLOCK': 2048}, 4),
    (gelu.bias_gelu_kernel, {'BLOCK': 1024}, 4),
    (attention.attention_kernel,
     {'ROWS': 64, 'KEYS': 64, 'WIDTH': 128, 'PRECISION': 'tf32'}, 8),
    *[(kernel, {'BLOCK': 256}, 4) for kernel in (
        jpeg.brightness_kernel, jpeg.colour_kernel, jpeg.rows_forward_kernel, jpeg.columns_kernel,
        jpeg.rows_back_kernel, jpeg.rgb_kernel, resize.crop_kernel)],
    (resize.filter_kernel, {'BLOCK': 256, 'ROUND': True}, 4),
    (small.add_rms_norm_small_kernel, {'HAS_DELTA': True, 'MOST': 127.0, 'BLOCK': 4096}, 8),
    (small.swiglu_small_kernel, {'MOST': 127.0, 'BLOCK': 16384}, 16),
    (small.rescale_kernel, {'BLOCK': 1024}, 4),
    (compact.compact_kernel, {'ROWS': 1024, 'BLOCK': 4096}, 8),
    (mark_best.mark_best_kernel, {'PLACES': 32, 'OTHERS': 128}, 4),
    *[(linear_small.linear_small_kernel,
       {'BITS': bits, 'SPLITS': splits, 'ROWS': rows, 'OUT': 64, 'HALF': 64}, 4)
      for bits in (4, 8) for splits, rows in ((1, 128), (2, 64))],
]  # fmt: skip
FLOAT8 = [
    (kernel, {**constants, 'MOST': 448.0}, warps)
    for kernel, constants, warps in KERNELS
    if 'MOST' in constants
]
# Arguments of the kernels for pictures; numbers not named here or above are i32.
_PICTURES = {'rgb': '*u8', 'blocks': '*i16', 'divisors': '*i32', 'multipliers': '*i32',
             'low': '*i64', 'high': '*i64', 'fraction': '*fp32', 'at': '*i64',
             'weights': '*fp32', 'x': '*u8', 'out': '*u8'}  # fmt: skip
# The same for kernels whose names mean something else than elsewhere.
_OWN = {
    'compact': {'keep': '*u8', 'ids': '*i64', 'out_ids': '*i64', 'x': '*bf16', 'out': '*bf16',
                'count': '*i32'},
    'mark_best': {'values': '*fp32', 'out': '*u8'},
    'linear_small': {'x': '*i8', 'rows': '*fp32', 'out': '*bf16', 'arrived': '*i32'},
}  # fmt: skip
_TYPES = {'eps': 'fp32', 'scale': 'fp32', 'count': '*i32', 'heads': 'i32', 'rows': 'i32'}
CAPABILITIES = (80, 86, 87, 89, 90, 100, 120)


def type_of(name, constants, kernel):
    if name in constants:
        return 'constexpr'
    module = kernel.__module__.rpartition('.')[2]
    if module in _OWN:
        small = constants.get('BITS') == 4
        own = {'weight': '*u8' if small else '*i8', 'columns': '*bf16' if small else '*fp32',
               'parts': '*fp32' if small else '*i32'}  # fmt: skip
        return {**own, **_OWN[module]}.get(name, 'i32')
    if kernel.__module__.endswith(('jpeg', 'resize')):
        return _PICTURES.get(name, 'i32')
    if name in ('out', 'scales') and kernel.__module__.endswith('small'):
        small_type = {127.0: '*i8', 448.0: '*fp8e4nv'}.get(constants.get('MOST'), '*bf16')
        return '*fp32' if name == 'scales' else small_type
    if name in ('whole', 'rows', 'columns') and kernel.__module__.endswith('small'):
        return '*i32' if name == 'whole' else '*fp32'
    if name == 'scale' and kernel is layer_norm.add_scale_layer_norm_kernel:
        return '*bf16'
    return _TYPES.get(name, 'i32' if name in _STRIDES else '*bf16')


def build(kernel, constants, warps, capability):
    """What a launch at the published sizes compiles: widths and strides are multiples of 16."""
    names, module = kernel.arg_names, kernel.__module__.rpartition('.')[2]
    signature = {name: type_of(name, constants, kernel) for name in names}
    whole = {
        (i,): [['tt.divisibility', 16]]
        for i, name in enumerate(names)
        if signature[name].startswith('*')
        or (name in _STRIDES and signature[name] == 'i32' and 'at' not in names)
        or (module == 'linear_small' and name in ('n', 'k'))
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    exact = module == 'resize'
    return triton.compile(
        ASTSource(kernel, signature, constexprs=values, attrs=whole),
        target=GPUTarget('cuda', capability, 32),
        options={
            'num_warps': warps,
            'num_stages': 3 if module == 'linear_small' else 2,
            'enable_fp_fusion': not exact,
        },
    )


def spilled(cubin):
    """Bytes of stack and of local memory, from the bundled tool."""
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [tool, '--dump-resource-usage', file.name], capture_output=True, text=True, check=True
        ).stdout
    return [int(re.search(rf'{what}:(\d+)', said)[1]) for what in ('STACK', 'LOCAL')]


if __name__ == '__main__':
    for capability in map(int, sys.argv[1:] or CAPABILITIES):
        for kernel, constants, warps in KERNELS + FLOAT8 * (capability >= 89):
            made = build(kernel, constants, warps, capability)
            if kernel.__module__.endswith('resize'):  # another rounding, other pictures
                assert 'fma.rn.f32' not in made.asm['ptx'], kernel.__name__
            print(capability, kernel.__name__, made.metadata.shared, *spilled(made.asm['cubin']))
