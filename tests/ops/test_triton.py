"""The Triton backend, interpreted and on a GPU.

Whether kernels are interpreted is settled when triton is first imported, so
``TestInterpreted`` runs in a process of its own, which ``test_interpreted``
starts, for other files too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

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
from pelk_mm.ops.backends.triton_plan import Tiles, make_plan
from pelk_mm.ops.choice import select_backend
from tests.helpers.operator_cases import GRIDS

if not hasattr(pytest.importorskip('triton'), 'knobs'):
    pytest.skip('it needs a newer Triton', allow_module_level=True)

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
            'tests/ops/test_triton_branches.py',
            'tests/ops/test_triton_residual.py',
            'tests/models/layers/test_residual.py',
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
            ((1, 1, 2, 131), 'far', 'channels_last', torch.float32),
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


@pytest.mark.gpu
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
