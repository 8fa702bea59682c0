"""Kernels keep what they computed when they move to another grid."""

import pytest
import torch

from pelk_mm.models import PeLK
from pelk_mm.models.utils import move_kernels, move_masks, read_grids, regrid
from pelk_mm.models.utils.kernel_growth import resize_centred
from pelk_mm.ops import SharingGrid

ARCH = dict(
    depths=(1, 2, 1, 1),
    channels=(8, 12, 16, 20),
    kernel_sizes=(13, 11, 9, 7),
    center_radius=1,
)
GRIDS = [SharingGrid(size, 1) for size in ARCH['kernel_sizes']]


def randomised(arch: dict = ARCH, **kwargs) -> PeLK:
    model = PeLK(arch, layer_scale_init_value=1.0, **kwargs)
    for name, tensor in model.state_dict().items():
        if name.endswith('running_var'):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(('running_mean', 'pos_embed')):
            tensor.normal_()
    return model.double().eval()


def test_regrid_is_exact_into_finer_cells():
    old = SharingGrid.from_sizes([4, 2, 1, 2, 4])
    new = SharingGrid.from_sizes([3, 2, 2, 1, 1, 1, 1, 1, 2, 2, 3])
    weight = torch.randn(3, 1, 5, 5, dtype=torch.float64)
    moved = regrid(weight, old, new)
    expected = torch.nn.functional.pad(old.expand(weight), [3] * 4)
    torch.testing.assert_close(new.expand(moved), expected)


def test_regrid_is_the_least_squares_solution():
    old, new = SharingGrid(31, 2), SharingGrid(37, 3)
    weight = torch.randn(1, 11, 11, dtype=torch.float64)
    target = torch.nn.functional.pad(old.expand(weight), [3] * 4)
    # Each column is what one compact weight contributes to the kernel.
    count = new.num_cells**2
    columns = new.expand(
        torch.eye(count, dtype=torch.float64).view(
            -1, new.num_cells, new.num_cells
        )
    )
    solution = torch.linalg.lstsq(
        columns.reshape(count, -1).T, target.reshape(-1, 1)
    ).solution
    torch.testing.assert_close(
        regrid(weight, old, new).reshape(-1), solution[:, 0]
    )


def test_resize_centred_pads_and_cuts():
    kernel = torch.arange(9.0).view(3, 3)
    torch.testing.assert_close(
        resize_centred(resize_centred(kernel, 7), 3), kernel
    )
    assert resize_centred(kernel, 1).tolist() == [[4.0]]
    assert resize_centred(kernel, 5, value=1.0)[0].tolist() == [1.0] * 5


@pytest.mark.parametrize('arch', ['tiny', 'tiny-101', 'tiny-151', ARCH])
def test_read_grids_tells_the_arch(arch):
    with torch.device('meta'):
        model = PeLK(arch)
    assert read_grids(model.state_dict(), '') == [
        SharingGrid(size, model.center_radius) for size in model.kernel_sizes
    ]


def test_read_grids_says_when_shapes_do_not_tell():
    state = PeLK(ARCH, pos_embed=False).state_dict()
    with pytest.raises(RuntimeError, match='no positional embeddings'):
        read_grids(state, '')
    # 13 positions in 11 cells: 1 2 1 … or 2 1 1 …
    kernels = {
        'stages.0.blocks.0.conv.large.weight': torch.zeros(1, 1, 11, 11),
        'stages.0.pos_embed': torch.zeros(1, 13, 13),
    }
    with pytest.raises(RuntimeError, match='2 centre radii fit'):
        read_grids(kernels, '')


#: Cells of ARCH are unions of these, the last stage's kernel is larger too.
FINER = dict(ARCH, kernel_sizes=(13, 11, 9, 11), center_radius=3)
FINER_GRIDS = [SharingGrid(size, 3) for size in FINER['kernel_sizes']]


def test_a_grown_network_computes_the_same_where_cells_only_split():
    old = randomised()
    moved, errors = move_kernels(old.state_dict(), '', GRIDS, FINER_GRIDS)
    assert max(errors) < 1e-12
    new = randomised(FINER)
    new.load_state_dict(moved)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(new(images)[0], old(images)[0])


def test_errors_are_those_of_the_written_out_kernels():
    state = randomised().state_dict()
    sizes = (17, 11, 5, 7)
    new = [SharingGrid(size, 2) for size in sizes]
    moved, errors = move_kernels(state, '', GRIDS, new)
    for stage, (before, after) in enumerate(zip(GRIDS, new, strict=True)):
        canvas = max(before.kernel_size, after.kernel_size)
        names = [
            name
            for name in state
            if name.startswith(f'stages.{stage}.blocks')
            and name.endswith('large.weight')
        ]
        kernels = torch.cat(
            [
                resize_centred(before.expand(state[name]), canvas)
                for name in names
            ]
        )
        results = torch.cat(
            [
                resize_centred(after.expand(moved[name]), canvas)
                for name in names
            ]
        )
        expected = (results - kernels).norm() / kernels.norm()
        assert errors[stage] == pytest.approx(float(expected))
    # The third stage was cut: what lay outside is part of the error.
    assert errors[2] > 0.3
    changed = {
        name
        for name in state
        if state[name].shape != moved[name].shape
        or not torch.equal(state[name], moved[name])
    }
    assert all(
        name.endswith(('large.weight', 'pos_embed')) for name in changed
    )


def test_move_kernels_refuses_what_does_not_fit():
    state = PeLK(ARCH).state_dict()
    with pytest.raises(ValueError, match='are the same'):
        move_kernels(state, '', GRIDS, GRIDS)
    with pytest.raises(ValueError, match='4 stages, got 3 old'):
        move_kernels(state, '', GRIDS[:3], GRIDS[:3])
    wrong = [SharingGrid(size, 2) for size in ARCH['kernel_sizes']]
    with pytest.raises(ValueError, match='which is not a kernel of 13 x 13'):
        move_kernels(state, '', wrong, GRIDS)


def test_masks_live_where_any_position_did_or_is_new():
    old, new = SharingGrid(5, 0), SharingGrid(9, 0)
    assert (old.sizes, new.sizes) == ((2, 1, 2), (2, 2, 1, 2, 2))
    name = 'a.stages.0.blocks.0.conv.large.weight'
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[..., 0, 1] = True
    other = torch.tensor([[True, False]])
    moved = move_masks({name: mask, 'a.fc.weight': other}, 'a.', [old], [new])
    assert moved[name][0, 0].int().tolist() == [
        [1, 1, 1, 1, 1],
        [1, 0, 1, 0, 1],
        [1, 0, 0, 0, 1],
        [1, 0, 0, 0, 1],
        [1, 1, 1, 1, 1],
    ]
    assert moved['a.fc.weight'] is other
