"""What the Triton backend launches, and what Triton compiles for it.

No kernel runs here: that is test_triton.py's.
"""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
from collections import Counter
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pelk_mm.ops import SharingGrid
from pelk_mm.ops.backends import triton as triton_backend
from pelk_mm.ops.backends import (
    triton_branches,
    triton_launch,
    triton_residual,
)
from pelk_mm.ops.backends.triton_launch import View, make_work
from tests.helpers.operator_cases import GRIDS

triton = pytest.importorskip('triton')
if not hasattr(triton, 'knobs'):
    pytest.skip('the kernels need a newer Triton', allow_module_level=True)
pytestmark = pytest.mark.skipif(
    os.environ.get('TRITON_INTERPRET') == '1',
    reason='the interpreter compiles nothing',
)


@pytest.fixture(autouse=True)
def nothing_kept():
    """What a test has replaced is neither used nor kept by the launches."""
    forget()
    yield
    forget()


def forget():
    for kept in (
        make_work,
        triton_branches.make_step,
        triton_branches.copy_launch,
        triton_branches.join_launch,
        triton_residual._launch,
        triton_residual._grad_launch,
    ):
        kept.cache_clear()


KERNELS = vars(triton_launch.kernels())


class Recorder:
    """A kernel that notes its launches instead of running."""

    def __init__(self, kernel, launches, direct):
        self.kernel, self.arg_names = kernel, kernel.arg_names
        self.launches, self.direct = launches, direct

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.launches.append((self.kernel, grid, args, kwargs))

            def again(*later):
                assert dtypes(later) == dtypes(args), 'compiled for others'
                self.direct.append((self, grid, later))

            return {grid: again}

        return launch


def dtypes(args):
    return [arg.dtype for arg in args if isinstance(arg, torch.Tensor)]


def replace_kernels(monkeypatch):
    """Lists of what Triton is asked to launch, and of what goes past it."""
    launches, direct = [], []
    recorders = {
        name: Recorder(kernel, launches, direct)
        for name, kernel in KERNELS.items()
        if name.endswith('_kernel')
    }
    kernels = SimpleNamespace(
        **KERNELS | recorders | {'COMPILED_TAKES_ALL': True}
    )
    monkeypatch.setattr(triton_launch, 'kernels', lambda: kernels)
    forget()
    return launches, direct


def run(shape, grid, dtype, with_bias=True, layout=torch.channels_last):
    """A forward and a backward pass of tensors without memory."""
    batch, channels, height, width = shape
    all_channels = channels * 8 // 3
    input = torch.empty(
        batch, all_channels, height, width, dtype=dtype, device='meta'
    ).to(memory_format=layout)[:, :channels]
    weight = torch.empty(
        channels, 1, grid.num_cells, grid.num_cells, dtype=dtype, device='meta'
    )
    backend = triton_backend.TritonBackend()
    bias = weight[:, 0, 0, 0] if with_bias else None
    backend.forward(input, weight, bias, grid, layout)
    backend.backward(input, weight, input, grid, layout)


def run_branches(shape, grid, dtype, *_, of=torch.float32, pos_embed=True):
    """The same of two branches and their norms, of a map and weights."""
    batch, channels, height, width = shape
    all_channels = channels * 8 // 3
    cells = grid.num_cells

    def empty(*size):
        return torch.empty(size, device='meta', dtype=of, requires_grad=True)

    x = empty(batch, height, width, all_channels).permute(0, 3, 1, 2)
    y = triton_branches.join_branches(
        x,
        empty(channels, 1, cells, cells),
        empty(channels, 1, 5, 5),
        [
            torch.nn.BatchNorm2d(channels, device='meta', dtype=of)
            for _ in range(2)
        ],
        empty(1, cells, cells) if pos_embed else None,
        grid,
        SharingGrid.from_sizes([1] * 5),
        dtype,
        of,
    )
    torch.autograd.grad(y, x, torch.empty_like(y))


def run_block(shape, grid, dtype, *_, **options):
    """The same of what a block has of kernels, with stochastic depth."""
    run_branches(shape, grid, dtype, **options)
    batch, channels, *size = shape
    all_channels = channels * 8 // 3

    def empty(*size, of=torch.float32):
        return torch.empty(size, device='meta', dtype=of, requires_grad=True)

    for kept in (0.9, 1.0):
        x = empty(batch, *size, all_channels).permute(0, 3, 1, 2)
        y = triton_residual.add_scaled(
            x,
            empty(batch, *size, -(-all_channels // 8) * 8, of=dtype),
            empty(all_channels),
            torch.empty(batch, device='meta') if kept < 1 else None,
            kept,
            torch.float32,
        )
        torch.autograd.grad(y, x, torch.empty_like(y))


def record_launches(monkeypatch, *kind):
    """What a forward and a backward pass launch."""
    launches, _ = replace_kernels(monkeypatch)
    run(*kind)
    assert {kernel.__name__ for kernel, *_ in launches} == {
        'rows_kernel',
        'maps_kernel',
        'forward_kernel',
        'interleave_kernel',
        'weight_grad_kernel',
    }
    return launches


@lru_cache
def make_binder(kernel, arch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(GPUTarget('cuda', arch, 32))
    return backend, create_function_from_signature(
        kernel.signature, kernel.params, backend
    )


def specialise(kernel, args, kwargs, arch=90):
    """What Triton compiles for a launch, as it finds out itself."""
    backend, bind = make_binder(kernel, arch)
    return backend, *bind(*args, **kwargs)


def compile_launch(kernel, args, kwargs, arch):
    """Compile as a launch would, aligned pointers and round numbers known."""
    from triton.compiler import ASTSource

    backend, bound, found, options = specialise(kernel, args, kwargs, arch)
    options, signature, constants, attributes = kernel._pack_args(
        backend, kwargs, bound, found, options
    )
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=backend.target,
        options=options.__dict__,
    )


def resources(compiled, path):
    """Registers and bytes of stack per thread, from the machine code."""
    cubin = path / 'kernel.cubin'
    cubin.write_bytes(compiled.asm['cubin'])
    tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
    usage = subprocess.run(
        [tool, '-res-usage', cubin], check=True, capture_output=True, text=True
    ).stdout
    found = re.search(r'REG:(\d+) STACK:(\d+)', usage)
    return int(found[1]), int(found[2])


SLOW = pytest.mark.slow
STAGE_1, WIDE = (64, 46, 56, 56), (1, 62, 128, 512)


@pytest.mark.parametrize(
    ('arch', 'dtype', 'shape', 'grid'),
    [
        (90, torch.bfloat16, STAGE_1, '51'),
        # Maps of few, but aligned, channels in a tile.
        (90, torch.float32, (2, 96, 100, 100), 'large cells'),
        *(
            pytest.param(arch, dtype, *rest, marks=SLOW)
            for arch in (80, 90)
            for dtype in (torch.bfloat16, torch.float32)
            for rest in (
                (STAGE_1, '51'),
                (STAGE_1, '101'),
                (WIDE, '101'),
                ((64, 187, 14, 14), '31'),
            )
        ),
    ],
)
def test_compiles_without_spills(
    monkeypatch, tmp_path, arch, dtype, shape, grid
):
    """Every launch gives machine code that keeps to its registers."""
    launches = record_launches(monkeypatch, shape, GRIDS[grid], dtype)
    done = set()
    for kernel, _, args, kwargs in launches:
        key = kernel.__name__, *kwargs.items()
        if key in done:
            continue
        done.add(key)
        compiled = compile_launch(kernel, args, kwargs, arch)
        registers, stack = resources(compiled, tmp_path)
        shared = compiled.metadata.shared
        print(
            f'{kernel.__name__} sm_{arch} {dtype}: {registers} registers, '
            f'{stack} bytes of stack, {shared} bytes of shared memory'
        )
        # A few numbers of float32, where more registers were slower on an
        # H200. On an A100 nobody measured: Triton 3.6 spills 152 bytes, 3.8
        # 480, and neither any with chunks of 16 columns, one at a time.
        float32 = {80: 512, 90: 160}
        most = float32[arch] if dtype == torch.float32 else 32
        assert stack <= most, f'{kernel.__name__} spills'
        # What the smallest GPUs of these generations have for a block.
        assert shared <= 99 * 1024
        if kernel.__name__ in ('forward_kernel', 'weight_grad_kernel'):
            # On the tensor cores, Hopper's own where tiles are large enough,
            # and fed with 16 bytes at a time.
            large = kwargs['BLOCK_X'] == 64
            instruction = 'wgmma' if arch == 90 and large else 'mma'
            assert f'{instruction}.' in compiled.asm['ptx']
            assert re.search(
                r'ld\.global\.v4|cp\.async\.\S* .*, 0x10', compiled.asm['ptx']
            )


@pytest.mark.parametrize(
    ('arch', 'shape', 'grid'),
    [(90, STAGE_1, '51'), pytest.param(80, (2, 93, 28, 28), '51', marks=SLOW)],
)
def test_the_rest_of_a_block_compiles_without_spills(
    monkeypatch, tmp_path, arch, shape, grid
):
    launches, _ = replace_kernels(monkeypatch)
    run_block(shape, GRIDS[grid], torch.bfloat16)
    found = set()
    for kernel, _, args, kwargs in launches:
        name = kernel.__name__.removesuffix('_kernel')
        if name in ('rows', 'maps', 'forward', 'weight_grad') or (
            name in found and name != 'join'
        ):
            continue
        found.add(name)
        compiled = compile_launch(kernel, args, kwargs, arch)
        registers, stack = resources(compiled, tmp_path)
        print(f'{name} sm_{arch}: {registers} registers, {stack} of stack')
        assert stack == 0
    norms = {'moments', 'norm', 'join', 'norm_sums', 'norm_grad'}
    assert found == norms | {'residual', 'residual_grad'}


@pytest.mark.parametrize(
    ('run', 'most'), [(run_branches, 21), (run_block, 25)]
)
def test_launches_of_a_block(monkeypatch, run, most):
    """Part by part the branches are some fifty, the residual some fifteen."""
    launches, direct = replace_kernels(monkeypatch)
    run(STAGE_1, GRIDS['51'], torch.bfloat16)
    assert len(launches) + len(direct) <= most


def test_planar_output_is_written_in_wide_words(monkeypatch):
    """Where its rows allow that, which need no multiple of 16 columns."""
    launches, _ = replace_kernels(monkeypatch)
    run(
        (2, 3, 14, 24),
        GRIDS['5'],
        torch.bfloat16,
        layout=torch.contiguous_format,
    )
    names = [kernel.__name__ for kernel, *_ in launches]
    assert 'interleave_kernel' not in names
    kernel, _, args, constants = launches[names.index('forward_kernel')]
    compiled = compile_launch(kernel, args, constants, 90)
    assert 'st.global.v4' in compiled.asm['ptx']


def test_launches_stay_within_grid_and_scratch(monkeypatch):
    """A whole ADE20K test image of stage 1, and a big batch."""
    for shape in ((16, 62, 128, 512), (512, 46, 56, 56)):
        for _, grid, args, _ in record_launches(
            monkeypatch, shape, GRIDS['101'], torch.bfloat16
        ):
            assert all(extent <= 65535 for extent in grid[1:])
            for tensor in args:
                if isinstance(tensor, torch.Tensor) and tensor.ndim == 5:
                    assert tensor.nbytes <= max(
                        triton_launch._SCRATCH_BYTES,
                        tensor.nbytes // tensor.shape[1],
                    )


def test_usual_batches_are_one_group_of_channels(monkeypatch):
    """Launches take the host longer than the GPU: no more for K = 101."""
    counts = [
        len(record_launches(monkeypatch, shape, GRIDS[name], torch.bfloat16))
        for name, shape in (
            ('51', STAGE_1),
            ('101', STAGE_1),
            ('51', (128, *STAGE_1[1:])),
        )
    ]
    assert counts == [counts[0]] * 3


class Ops(TorchDispatchMode):
    """Notes what torch itself runs, on tensors that are large enough."""

    def __init__(self, at_least=0):
        super().__init__()
        self.names, self.at_least = set(), at_least

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **kwargs or {})
        sizes = [
            value.numel()
            for value in (*args, result)
            if isinstance(value, torch.Tensor)
        ]
        if max(sizes, default=0) >= self.at_least:
            self.names.add(op.overloadpacket.__name__)
        return result


@pytest.mark.parametrize('shape', [STAGE_1, (1, 5, 600, 1000)])
def test_second_call(monkeypatch, shape):
    """Triton is asked once, and nothing is copied from or to the host."""
    launches, direct = replace_kernels(monkeypatch)
    run(shape, GRIDS['51'], torch.bfloat16)
    first = len(launches)
    assert first >= 10 and not direct
    with Ops() as ops:
        run(shape, GRIDS['51'], torch.bfloat16)
    assert len(launches) == first
    assert len(direct) == first
    for launch, (recorder, grid, args) in zip(launches, direct, strict=True):
        kernel, asked_grid, tensors, constants = launch
        assert (kernel, asked_grid) == (recorder.kernel, grid)
        _, bound, *_ = specialise(kernel, tensors, constants)
        assert len(args) == len(bound)
        for one, other in zip(args, bound.values(), strict=True):
            if isinstance(one, torch.Tensor):
                assert one.shape == other.shape and one.dtype == other.dtype
            else:
                assert one == other
    # The last two are the sum of float32 and its conversion.
    views = {'slice', 'select', 'detach'}
    makes = {'empty', 'new_empty', 'empty_like', 'cat', 'sum', '_to_copy'}
    assert ops.names <= views | makes, ops.names


def test_torch_makes_no_pass_over_the_maps_of_a_block(monkeypatch):
    """Such as adding zeros, where only a second derivative has others."""
    replace_kernels(monkeypatch)
    run_block(STAGE_1, GRIDS['51'], torch.bfloat16)
    with Ops(at_least=math.prod(STAGE_1)) as ops:
        run_block(STAGE_1, GRIDS['51'], torch.bfloat16)
    views = {'slice', 'select', 'unbind', 'transpose', 'permute', 'expand'}
    makes = {'empty', 'new_empty', 'empty_like'}
    assert ops.names <= views | makes | {'detach'}, ops.names


def test_no_kernel_is_launched_with_other_dtypes(monkeypatch):
    """Sizes are alike under autocast, without, and with narrow weights."""
    launches, direct = replace_kernels(monkeypatch)
    half, single = torch.bfloat16, torch.float32
    for _ in range(2):
        for dtype, of in ((half, single), (single, single), (half, half)):
            for pos_embed in (True, False):
                options = dict(of=of, pos_embed=pos_embed)
                run_block((2, 5, 14, 14), GRIDS['5'], dtype, **options)
    # The recorder compares them.
    assert len(direct) > len(launches)


@pytest.mark.parametrize(
    ('layout', 'channels', 'start', 'expected'),
    [
        ('channels_last', 46, 0, (2, 1)),
        ('channels_last', 64, 0, (8, 1)),
        ('channels_last', 64, 4, (4, 1)),
        ('channels_last', 93, 0, (1, 1)),
        ('contiguous', 93, 0, (1, 8)),
        ('strided', 64, 0, (1, 1)),
    ],
)
def test_runs(layout, channels, start, expected):
    """What one load may take, from strides, sizes and the address."""
    shape = 1, channels, 24, 56
    storage = torch.empty(2 * math.prod(shape) + start, dtype=torch.bfloat16)
    strides = {
        'contiguous': (channels * 1344, 1344, 56, 1),
        'channels_last': (channels * 1344, 1, channels * 56, channels),
        'strided': (channels * 2688, 2688, 112, 2),
    }
    tensor = storage.as_strided(shape, strides[layout], start)
    assert View.of(tensor).runs() == expected


@pytest.mark.parametrize(('run', 'every'), [(run, 1), (run_block, 3)])
def test_multi_scale_training_compiles_few_kernels(monkeypatch, run, every):
    """2000 steps of PeLK-T on two COCO images, resized and padded."""
    choose = random.Random(0).choice
    ratios = [4 / 3, 640 / 427, 16 / 9, 1, 3 / 4, 427 / 640]
    batches = set()
    for _ in range(2000):
        sizes = []
        for _ in range(2):
            side, ratio = choose(range(480, 801, 32)), choose(ratios)
            size = side * max(1, 1 / ratio), side * max(1, ratio)
            scale = min(1, 1333 / max(size))
            sizes.append([math.ceil(scale * x / 32) * 32 for x in size])
        batches.add(tuple(map(max, zip(*sizes, strict=True))))
    assert len(batches) > 100
    stages = (46, 51), (93, 49), (187, 47), (374, 13)
    found = set()
    launches, _ = replace_kernels(monkeypatch)
    for height, width in sorted(batches)[::every]:
        for stage, (channels, kernel_size) in enumerate(stages):
            shape = 2, channels, height >> stage + 2, width >> stage + 2
            run(shape, SharingGrid(kernel_size), torch.bfloat16, False)
    for kernel, _, args, kwargs in launches:
        _, _, key, options = specialise(kernel, args, kwargs)
        found.add((kernel.__name__, tuple(key), str(options)))
    print(Counter(name for name, *_ in found))
    assert len(found) <= 30
