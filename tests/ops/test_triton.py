"""The Triton backend: interpreted, through the compiler, and on a GPU.

Whether kernels are interpreted is settled when triton is first imported, so
``TestInterpreted`` runs in a process of its own, which ``test_interpreted``
starts.
"""

from __future__ import annotations

import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d
from pelk_mm.ops.backends import (
    BACKENDS,
    BackendError,
    memory_format,
    triton_launch,
    triton_plan,
)
from pelk_mm.ops.backends import triton as triton_backend
from pelk_mm.ops.backends.triton_launch import View, make_work, maps_launch
from pelk_mm.ops.backends.triton_plan import Tiles, make_plan, make_tables
from pelk_mm.ops.choice import select_backend

triton = pytest.importorskip('triton')

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROOT = Path(__file__).parents[2]
# Largest error of any region over the largest value: of the output, of the
# gradients. Half an ulp in float16; a whole one in bfloat16, where sums of
# rows are rounded too.
TOLERANCE = {
    torch.float32: (1e-6, 1e-5),
    torch.float16: (2**-11 * 1.05, 2**-11 * 1.05),
    torch.bfloat16: (2**-7, 2**-7),
}
GRIDS = {
    '5': SharingGrid(5, center_radius=0),
    '13': SharingGrid(13),
    '31': SharingGrid(31),
    '51': SharingGrid(51),
    '101': SharingGrid(101, center_radius=3),
    'explicit': SharingGrid.from_sizes([1, 1, 2, 4, 1, 4, 2, 1, 1]),
    'ones': SharingGrid.from_sizes([1] * 7),
    'one cell': SharingGrid.from_sizes([5]),
    'far': SharingGrid.from_sizes([25, 1, 25]),
    'large cells': SharingGrid.from_sizes([64, 1, 64]),
}


def make_input(shape, dtype, layout, device='cpu'):
    """An input of a layout; slices are made of poisoned neighbours."""
    batch, channels, height, width = shape
    generator = torch.Generator(device).manual_seed(0)
    values = torch.randn(shape, generator=generator, device=device).to(dtype)
    if layout == 'contiguous':
        return values
    if layout == 'channels_last':
        return values.contiguous(memory_format=torch.channels_last)
    if layout == 'slice':
        whole = torch.full(
            (batch, height, width, channels + 3),
            torch.nan,
            dtype=dtype,
            device=device,
        )
        whole = whole.permute(0, 3, 1, 2)
        whole[:, 1:-2] = values
        return whole[:, 1:-2]
    assert layout == 'strided'
    whole = torch.full(
        (batch, channels, 2 * width, height),
        torch.nan,
        dtype=dtype,
        device=device,
    )
    whole = whole.transpose(2, 3)[..., ::2]
    whole.copy_(values)
    return whole


def call(input, weight, bias, grad_output, grid, backend):
    """Output and the gradients to input, weight and bias."""
    leaves = [
        tensor.detach().requires_grad_() for tensor in (input, weight, bias)
    ]
    output = peripheral_conv2d(
        leaves[0], leaves[1], grid, leaves[2], backend=backend
    )
    return output.detach(), *torch.autograd.grad(output, leaves, grad_output)


def map_regions(size):
    """Corners, border rows and columns, and every ring within."""
    height, width = size
    y, x = torch.arange(height)[:, None], torch.arange(width)[None, :]
    inset = torch.minimum(
        torch.minimum(y, height - 1 - y), torch.minimum(x, width - 1 - x)
    )
    regions = {f'ring {i}': inset == i for i in range(int(inset.max()) + 1)}
    for name, row in (('top', 0), ('bottom', height - 1)):
        regions[name] = (y == row).expand(size)
        for side, column in (('left', 0), ('right', width - 1)):
            regions[f'{name} {side}'] = (y == row) & (x == column)
    for side, column in (('left', 0), ('right', width - 1)):
        regions[side] = (x == column).expand(size)
    return regions


def assert_close_by_region(actual, expected, tolerance):
    error = (actual.double() - expected).abs() / expected.abs().max()
    if error.ndim < 4:
        assert error.max() <= tolerance
        return
    for name, region in map_regions(error.shape[-2:]).items():
        worst = error[..., region.to(error.device)].max().item()
        assert worst <= tolerance, f'{name}: {worst:.2e} > {tolerance:.2e}'


def check(
    shape, grid, dtype, layout='contiguous', device='cpu', reference='dense'
):
    """Everything against the same numbers in float64."""
    channels, cells = shape[1], grid.num_cells
    generator = torch.Generator(device).manual_seed(1)

    def normal(*size):
        return torch.randn(size, generator=generator, device=device)

    input = make_input(shape, dtype, layout, device)
    weight = normal(channels, 1, cells, cells).to(dtype)
    bias = normal(channels).to(dtype)
    grad_output = normal(*shape).to(dtype)
    if layout != 'contiguous':
        grad_output = grad_output.contiguous(memory_format=torch.channels_last)
    arguments = input, weight, bias, grad_output
    actual = call(*arguments, grid, 'triton')
    expected = call(
        *(tensor.double() for tensor in arguments), grid, reference
    )
    assert all(tensor.dtype == dtype for tensor in actual)
    for number, pair in enumerate(zip(actual, expected, strict=True)):
        assert_close_by_region(*pair, TOLERANCE[dtype][number > 0])
    return actual


@pytest.fixture(autouse=True)
def nothing_kept():
    """What a test has replaced is neither used nor kept by the launches."""
    make_work.cache_clear()
    yield
    make_work.cache_clear()


@pytest.fixture
def poison():
    """Everything torch allocates unwritten is NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(INTERPRETED, reason='this is that process')
def test_interpreted():
    result = subprocess.run(
        [
            sys.executable,
            '-m',
            'pytest',
            '-q',
            '-x',
            '-p',
            'no:cacheprovider',
            '-k',
            'TestInterpreted',
            __file__,
        ],
        cwd=ROOT,
        env={**os.environ, 'TRITON_INTERPRET': '1'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r'\d+ passed', result.stdout)
    assert 'skipped' not in result.stdout, result.stdout


@pytest.fixture
def many_boxes(monkeypatch):
    """Plan for maps that cost nothing: small maps would have no boxes."""
    monkeypatch.setattr(triton_plan, '_MAP_COST', 0.0)
    make_plan.cache_clear()
    yield
    make_plan.cache_clear()


@pytest.mark.usefixtures('poison', 'many_boxes')
class TestInterpreted:
    __test__ = INTERPRETED

    @pytest.mark.parametrize('dtype', DTYPES)
    def test_dtypes(self, dtype):
        check((1, 1, 21, 7), GRIDS['explicit'], dtype, 'slice')

    @pytest.mark.parametrize(
        ('shape', 'grid', 'layout', 'dtype'),
        [
            ((2, 1, 9, 14), '13', 'contiguous', torch.bfloat16),
            ((1, 2, 5, 3), '31', 'channels_last', torch.float32),
            ((1, 1, 7, 11), 'ones', 'strided', torch.float32),
            ((3, 1, 4, 6), 'one cell', 'contiguous', torch.bfloat16),
            ((1, 1, 1, 1), '5', 'channels_last', torch.float32),
            ((1, 1, 18, 15), '101', 'slice', torch.bfloat16),
            # Several tiles of columns, not all of which meet all others.
            ((1, 1, 2, 197), 'far', 'channels_last', torch.float32),
        ],
    )
    def test_grids(self, shape, grid, layout, dtype):
        check(shape, GRIDS[grid], dtype, layout)

    def test_result_keeps_the_layout(self):
        grid = GRIDS['5']
        weight = torch.randn(4, 1, 3, 3)
        for layout, expected in (
            ('contiguous', torch.contiguous_format),
            ('slice', torch.channels_last),
        ):
            input = make_input((1, 4, 3, 5), torch.float32, layout)
            output = BACKENDS['triton'].forward(
                input, weight, None, grid, memory_format(input)
            )
            assert output.is_contiguous(memory_format=expected)

    def test_half_boxes_do_not_overflow(self):
        """Eight rows of 2e4 exceed float16, their mean does not."""
        grid = SharingGrid.from_sizes([9, 1, 9])
        input = torch.full((1, 1, 19, 4), 2e4, dtype=torch.float16)
        weight = torch.full((1, 1, 3, 3), 2**-10, dtype=torch.float16)
        assert make_plan(grid.sizes, 19, 16, True).boxes[0] == 8
        actual, expected = (
            BACKENDS[name].forward(
                input, weight, None, grid, torch.contiguous_format
            )
            for name in ('triton', 'dense')
        )
        assert expected.isfinite().all()
        assert_close_by_region(actual, expected.double(), 2**-10)

    @pytest.mark.parametrize('dtype', DTYPES)
    @pytest.mark.parametrize(
        ('shape', 'boxes', 'layout'),
        [
            ((2, 3, 12, 5), (8, 2, 1), 'slice'),
            # Several tiles of rows, columns and channels.
            ((2, 9, 70, 18), (8, 2, 1), 'channels_last'),
            ((1, 3, 40, 17), (32, 4, 1), 'strided'),
            ((1, 34, 40, 17), (1,), 'contiguous'),
        ],
    )
    def test_maps(self, shape, boxes, layout, dtype):
        input = make_input(shape, dtype, layout)
        largest, means = boxes[0], dtype == torch.float16
        plan = triton_plan.Plan((8,), means, boxes, ((), (), ()))
        launch, size = maps_launch(View.of(input), plan, 32)
        maps = torch.empty(size, dtype=dtype)
        launch(input, maps)
        maps = maps.double()
        right = 32 - shape[3]
        padded = torch.nn.functional.pad(
            input.double(), (0, right, largest - 1, largest - 1)
        )
        rows = padded.unfold(2, largest, 1).transpose(0, 1)
        first = 0
        for box in reversed(boxes):
            above = largest - box
            expected = rows[..., :box].sum(-1)[:, :, above:]
            stored = maps[first, :, :, above:]
            first += 1
            if means and box > 1:
                stored = stored + maps[first, :, :, above:]
                first += 1
            error = (stored * (box if means else 1) - expected).abs().max()
            # Two maps in float16; bfloat16 rounds.
            limit = {torch.float32: 2**-22, torch.float16: 2**-15}
            limit = 0 if box == 1 else limit.get(dtype, 2**-8)
            assert error <= limit * expected.abs().max()
        assert first == len(maps)

    def test_groups_of_channels(self, monkeypatch):
        grid = GRIDS['5']
        arguments = [
            make_input((1, 3, 3, 4), torch.float32, 'slice'),
            torch.randn(3, 1, 3, 3),
            torch.randn(3),
            torch.randn(1, 3, 3, 4),
        ]
        whole = call(*arguments, grid, 'triton')
        kind = View.of(arguments[0]), grid, torch.channels_last, True
        work = make_work(*kind)
        plane = (work.map_size * work.plan.num_maps + 3 * work.padded) * 4
        for scratch, counts in ((2 * plane, [2, 1]), (1, [1, 1, 1])):
            monkeypatch.setattr(triton_launch, '_SCRATCH_BYTES', scratch)
            make_work.cache_clear()
            parts = call(*arguments, grid, 'triton')
            assert all(map(torch.equal, whole, parts))
            groups = make_work(*kind).groups
            assert [group.count for group in groups] == counts

    def test_splits_of_the_weight_gradient(self, monkeypatch):
        monkeypatch.setattr(Tiles, 'splits', lambda *_: (3, 16))
        input = make_input((3, 1, 11, 5), torch.float32, 'contiguous')
        grad_output = torch.randn(input.shape)
        actual, expected = (
            BACKENDS[name].weight_grad(
                input.to(dtype), grad_output.to(dtype), GRIDS['5']
            )
            for name, dtype in (
                ('triton', torch.float32),
                ('dense', torch.float64),
            )
        )
        assert_close_by_region(actual, expected, 1e-5)

    def test_empty_batch(self):
        empty = torch.empty(0, 2, 5, 5, requires_grad=True)
        weight = torch.randn(2, 1, 3, 3, requires_grad=True)
        output = peripheral_conv2d(empty, weight, GRIDS['5'], backend='triton')
        assert output.shape == empty.shape
        output.sum().backward()
        assert torch.equal(weight.grad, torch.zeros_like(weight))

    def test_float64_is_refused(self):
        reason = available_backends('cpu', torch.float64)['triton']
        assert 'float64' in reason

    def test_runs_on_cpu_and_is_the_one_that_runs(self, monkeypatch):
        assert available_backends('cpu', torch.float16)['triton'] is None
        monkeypatch.setattr(triton_backend, 'make_work', None)
        input, weight = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3, 3)
        with pytest.raises(TypeError):
            peripheral_conv2d(input, weight, GRIDS['5'], backend='triton')
        # Without a name a CPU tensor never comes here.
        peripheral_conv2d(input, weight, GRIDS['5'])


class TestPlan:
    """The plan is plain Python: it is held against the grid itself."""

    @pytest.mark.parametrize('means', [False, True])
    @pytest.mark.parametrize('height', [1, 7, 56, 200])
    @pytest.mark.parametrize('grid', GRIDS)
    def test_covers_every_row_once(self, grid, height, means):
        grid = GRIDS[grid]
        plan = make_plan(grid.sizes, height, 64, means)
        radius = grid.kernel_size // 2
        covered = []
        for box, level in zip(plan.boxes, plan.cells, strict=True):
            for cell, shift, count in level:
                rows = range(shift, shift + box * count)
                covered += [(row, cell) for row in rows]
        cells = [
            cell for cell, size in enumerate(grid.sizes) for _ in range(size)
        ]
        assert sorted(covered) == [
            (row - radius, cell)
            for row, cell in enumerate(cells)
            if abs(row - radius) < height
        ]
        assert plan.boxes[-1] == 1
        assert list(plan.boxes) == sorted(set(plan.boxes), reverse=True)

    def test_products_grow_with_cells_not_with_rows(self):
        counts = {}
        for name in ('51', '101'):
            grid = GRIDS[name]
            for means in (False, True):
                plan = make_plan(grid.sizes, 56, 64, means)
                counts[name, means] = plan.num_products
                assert plan.num_products <= 2.1 * grid.num_cells
                assert plan.num_maps <= 7
        assert counts['101', True] <= 1.3 * counts['51', True]

    @pytest.mark.parametrize('means', [False, True])
    @pytest.mark.parametrize('height', [1, 7, 56])
    @pytest.mark.parametrize('grid', GRIDS)
    def test_tables(self, grid, height, means):
        """Both tables, with their factors, are sums of the right rows."""
        grid = GRIDS[grid]
        plan = make_plan(grid.sizes, height, 64, means)
        tables = make_tables(plan, height, 4, 2, torch.device('cpu'))
        boxes, maps = [], []
        for box, parts in zip(plan.boxes, plan.parts, strict=True):
            boxes[:0] = [box] * parts
            maps[:0] = [1 / box if means else 1, 0][:parts]
        expected = torch.zeros(grid.num_cells, 2 * height - 1)
        column = 0
        for cell, size in enumerate(grid.sizes):
            for row in range(column, column + size):
                offset = row - grid.kernel_size // 2
                if abs(offset) < height:
                    expected[cell, offset + height - 1] = 1
            column += size

        def add(total, map, down, box):
            """What a step brings an output row, of the rows around it."""
            if box == 0:
                assert down >= height
                return
            assert box == boxes[map]
            for row in range(down, down + box):
                if abs(row) < height:
                    total[row + height - 1] += maps[map]

        totals = torch.zeros_like(expected)
        steps, past = tables.steps.tolist(), 0
        for begin, end, factor in tables.levels.tolist():
            assert begin == past
            for cell, *step in steps[4 * begin : 4 * end]:
                add(totals[cell], *step)
            totals *= factor
            past = end
        assert 4 * past == len(steps)
        assert torch.equal(totals, expected)

        totals = torch.zeros_like(expected)
        cells = tables.cells.tolist()
        for index, (cell, factor) in enumerate(cells):
            total = torch.zeros(2 * height - 1)
            for step in range(tables.counts[index // 2]):
                before, *rest = tables.cell_steps[step, index].tolist()
                total *= before
                add(total, *rest)
            if cell >= 0:
                totals[cell] += total * factor
        assert torch.equal(totals, expected)
        assert tables.column_cells.bincount().tolist() == list(plan.sizes)

    @pytest.mark.parametrize('kernel_size', [5, 51, 101])
    @pytest.mark.parametrize('width', [1, 7, 56, 64, 65, 128, 334, 512])
    def test_chunks_hold_all_columns_in_reach(self, width, kernel_size):
        for tiles in (
            Tiles.forward(512, 46, width, kernel_size, True),
            Tiles.forward(16, 46, width, kernel_size, False),
            Tiles.weight_grad(512, width, True),
        ):
            padded = tiles.pad(width)
            assert width <= padded < width + tiles.chunk
            assert padded % tiles.chunk == 0
            reach = tiles.reach(width, kernel_size)
            assert reach >= min(width, tiles.columns // 2 + kernel_size // 2)
            pairs, chunks = tiles.pairs(width, kernel_size)
            assert chunks * tiles.chunk == reach
            assert pairs == -(-width // tiles.columns) * chunks
            first, last = tiles.taps(width, kernel_size)
            assert first <= max(0, kernel_size // 2 - width + 1)
            assert last >= min(kernel_size - 1, kernel_size // 2 + width - 1)

    def test_splits_hold_all_lines(self):
        tiles = Tiles.weight_grad(3584, 56, True)
        for programs in (1, 600, 5000):
            count, size = tiles.splits(3584, programs)
            assert (count - 1) * size < 3584 <= count * size
            assert size % tiles.lines == 0


class TestWhyNot:
    def test_cpu_reason(self):
        if INTERPRETED:
            pytest.skip('the interpreter takes CPU tensors')
        reason = BACKENDS['triton'].why_not(torch.device('cpu'), torch.float32)
        assert 'TRITON_INTERPRET=1' in reason
        with pytest.raises(RuntimeError, match='TRITON_INTERPRET=1'):
            peripheral_conv2d(
                torch.randn(1, 1, 3, 3),
                torch.randn(1, 1, 3, 3),
                GRIDS['5'],
                backend='triton',
            )

    def test_without_triton(self, monkeypatch):
        monkeypatch.setitem(
            sys.modules, 'pelk_mm.ops.backends.triton_kernels', None
        )
        monkeypatch.delattr(
            'pelk_mm.ops.backends.triton_kernels', raising=False
        )
        triton_launch.kernels.cache_clear()
        backend = triton_backend.TritonBackend()
        monkeypatch.setitem(BACKENDS, 'triton', backend)
        try:
            reason = available_backends('cuda', torch.float16)['triton']
            with pytest.raises(RuntimeError, match='triton failed') as raised:
                peripheral_conv2d(
                    torch.randn(1, 1, 3, 3),
                    torch.randn(1, 1, 3, 3),
                    GRIDS['5'],
                    backend='triton',
                )
            with pytest.raises(BackendError):
                backend.prepare()
        finally:
            triton_launch.kernels.cache_clear()
        assert 'importing triton failed' in reason
        assert isinstance(raised.value.__cause__, ImportError)

    def test_failing_launch(self, monkeypatch):
        """Kernels that cannot be launched leave the call to the others."""

        def launch(*_, **__):
            launches.append(1)
            raise RuntimeError('no C compiler\nmore')

        launches = []
        kernels = SimpleNamespace(
            INTERPRETED=False, interleave_kernel={(1, 1, 1): launch}
        )
        monkeypatch.setattr(
            torch, 'zeros', lambda *size, device: torch.ones(size)
        )
        for module in (triton_backend, triton_launch):
            monkeypatch.setattr(module, 'kernels', lambda: kernels)
        monkeypatch.setattr(triton_backend, '_why_not_on', lambda _: None)
        backend = triton_backend.TritonBackend()
        where = torch.device('cuda'), torch.float32
        assert backend.why_not(*where) is None
        for _ in range(2):
            with pytest.raises(BackendError, match='no C compiler$') as raised:
                backend.prepare()
            assert raised.value.__cause__ is backend.failure
            assert 'no C compiler' in str(backend.failure)
        assert len(launches) == 1
        assert backend.why_not(*where).endswith('no C compiler')
        monkeypatch.setitem(BACKENDS, 'triton', backend)
        with pytest.raises(RuntimeError, match='no C compiler') as raised:
            select_backend('triton', *where, 13)
        assert raised.value.__cause__ is backend.failure

    @pytest.mark.parametrize(
        ('hip', 'count', 'capability', 'word'),
        [
            ('6.0', 1, (9, 0), 'AMD'),
            (None, 0, (9, 0), 'no CUDA device'),
            (None, 2, (9, 0), 'no cuda:3'),
            (None, 4, (7, 5), '7.5'),
            (None, 4, (9, 0), None),
        ],
    )
    def test_devices(self, monkeypatch, hip, count, capability, word):
        monkeypatch.setattr(torch.version, 'hip', hip)
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: count > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
        monkeypatch.setattr(
            torch.cuda, 'get_device_capability', lambda device: capability
        )
        triton_backend._why_not_on.cache_clear()
        try:
            reason = triton_backend._why_not_on(torch.device('cuda', 3))
        finally:
            triton_backend._why_not_on.cache_clear()
        assert (reason is None) == (word is None)
        assert (word or '') in (reason or '')


class Recorder:
    """A kernel that notes its launches instead of running."""

    def __init__(self, kernel, launches, direct):
        self.kernel, self.arg_names = kernel, kernel.arg_names
        self.launches, self.direct = launches, direct

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.launches.append((self.kernel, grid, args, kwargs))
            return {grid: lambda *args: self.direct.append((self, grid, args))}

        return launch


def replace_kernels(monkeypatch):
    """Lists of what Triton is asked to launch, and of what goes past it."""
    from pelk_mm.ops.backends import triton_kernels

    launches, direct = [], []
    recorders = {
        name: Recorder(kernel, launches, direct)
        for name, kernel in vars(triton_kernels).items()
        if name.endswith('_kernel')
    }
    kernels = SimpleNamespace(**recorders, COMPILED_TAKES_ALL=True)
    monkeypatch.setattr(triton_launch, 'kernels', lambda: kernels)
    make_work.cache_clear()
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


@pytest.mark.skipif(INTERPRETED, reason='the interpreter compiles nothing')
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
        # A few numbers of float32, where more registers were slower.
        most = 160 if dtype == torch.float32 else 32
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


@pytest.mark.skipif(INTERPRETED, reason='the interpreter compiles nothing')
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


class Ops(TorchDispatchMode):
    """Notes what torch itself runs."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.add(op.overloadpacket.__name__)
        return op(*args, **kwargs or {})


@pytest.mark.skipif(INTERPRETED, reason='the interpreter compiles nothing')
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


@pytest.mark.skipif(INTERPRETED, reason='the interpreter compiles nothing')
def test_multi_scale_training_compiles_few_kernels(monkeypatch):
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
    for height, width in batches:
        for stage, (channels, kernel_size) in enumerate(stages):
            shape = 2, channels, height >> stage + 2, width >> stage + 2
            run(shape, SharingGrid(kernel_size), torch.bfloat16, False)
    for kernel, _, args, kwargs in launches:
        _, _, key, options = specialise(kernel, args, kwargs)
        found.add((kernel.__name__, tuple(key), str(options)))
    print(Counter(name for name, *_ in found))
    assert len(found) <= 30


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
class TestOnGPU:
    """At full size, against the FFT in float64."""

    @pytest.mark.parametrize('layout', ['contiguous', 'slice'])
    @pytest.mark.parametrize('dtype', DTYPES)
    @pytest.mark.parametrize(
        ('shape', 'grid'),
        [
            ((64, 46, 56, 56), '51'),
            ((64, 187, 14, 14), '31'),
            ((3, 374, 7, 7), '13'),
            ((1, 46, 128, 128), '101'),
            ((1, 62, 128, 512), '101'),
            ((2, 5, 200, 334), '51'),
            ((2, 7, 33, 95), 'explicit'),
            ((5, 3, 31, 29), 'ones'),
            ((1, 1, 1, 1), '5'),
        ],
    )
    def test_against_fft(self, shape, grid, dtype, layout):
        check(shape, GRIDS[grid], dtype, layout, 'cuda', 'fft')

    def test_repeats_bit_by_bit(self):
        results = [
            check(
                (16, 46, 56, 56),
                GRIDS['51'],
                torch.bfloat16,
                'slice',
                'cuda',
                'fft',
            )
            for _ in range(2)
        ]
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)

    def test_is_the_choice(self):
        reasons = available_backends('cuda', torch.bfloat16)
        assert reasons['triton'] is None
        input = torch.randn(1, 2, 9, 9, device='cuda')
        weight = torch.randn(2, 1, 3, 3, device='cuda')
        assert torch.equal(
            peripheral_conv2d(input, weight, GRIDS['5']),
            peripheral_conv2d(input, weight, GRIDS['5'], backend='triton'),
        )
