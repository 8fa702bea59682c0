"""Pictures of grids and kernels show what they are of."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from pelk_mm.analysis.figures import STRONG, save_figure
from pelk_mm.analysis.kernels import collect_kernels, draw_grid, draw_kernels
from pelk_mm.models import PeLK, enlarge_kernels
from pelk_mm.ops import SharingGrid
from tests.helpers.models import ARCH


@pytest.mark.parametrize(
    'grid',
    [
        SharingGrid(51),
        SharingGrid(101, 3),
        SharingGrid(13),
        SharingGrid(5, 0),
        SharingGrid(7, 3),
        SharingGrid(1, 0),
        SharingGrid.from_sizes([3, 3, 3]),
        SharingGrid.from_sizes([1, 1, 2, 4, 8, 1, 8, 4, 2, 1, 1]),
    ],
    ids=str,
)
def test_cells_tile_the_kernel(grid):
    small, large = draw_grid(grid).axes
    for axes, sizes in ((small, [1] * grid.num_cells), (large, grid.sizes)):
        mesh = axes.collections[0]
        corners = mesh.get_coordinates()
        edges = np.cumsum([0, *sizes])
        assert (corners == np.stack(np.meshgrid(edges, edges), -1)).all()
        focus = np.isclose(mesh.get_array(), to_rgb(STRONG)).all(-1).sum()
        assert focus == max(2 * grid.unshared_radius + 1, 0) ** 2
    texts = [text.get_text() for text in large.texts]
    written = ' '.join([large.get_title(), *texts])
    assert set(map(str, grid.sizes)) <= set(written.split())
    assert f'{grid.kernel_size} × {grid.kernel_size}' in written


@pytest.fixture
def backbone():
    model = PeLK(ARCH)
    for parameter in model.parameters():
        parameter.data.normal_()
    return model


@pytest.mark.parametrize(
    'per_stage, blocks', [(1, [1, 1, 2, 1]), (2, [1, 1, 1, 2, 1])]
)
def test_kernels_are_the_executed_ones(backbone, per_stage, blocks):
    before = {
        name: value.clone() for name, value in backbone.state_dict().items()
    }
    found = collect_kernels(backbone, per_stage)
    assert backbone.training
    assert not backbone.deploy
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])
    assert [int(kernels.name.split()[-1]) for kernels in found] == blocks
    backbone.switch_to_deploy()
    last = backbone.stages[3].blocks[0].conv.large
    assert torch.equal(found[-1].weight, last.weight[:, 0])
    assert found[-1].grid == last.grid
    again = collect_kernels(backbone)
    assert torch.equal(again[-1].weight, found[-1].weight)


def test_the_sheet_shows_compact_and_written_out(backbone, tmp_path):
    blocks = collect_kernels(backbone)
    figure = draw_kernels(blocks, channels=2)
    images = [
        axis.images[0].get_array() for axis in figure.axes if axis.images
    ]
    # The mean and two channels, in two rows, of four blocks.
    assert len(images) == 3 * 2 * 4
    compact, written = images[1], images[4]
    grid = blocks[0].grid
    assert compact.shape == (grid.num_cells,) * 2
    assert np.abs(compact).max() == pytest.approx(1)
    assert np.array_equal(
        written, grid.expand(torch.as_tensor(np.asarray(compact))).numpy()
    )
    path = save_figure(figure, tmp_path / 'new' / 'sheet.png', dpi=40)
    assert path.read_bytes()[1:4] == b'PNG'
    assert list(path.parent.iterdir()) == [path]


def test_kernels_of_other_networks():
    """By the shape of their weights, which two sizes share here."""
    model = torch.nn.Sequential(
        *(
            torch.nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
            for channels in (4, 4, 8)
        )
    )
    enlarge_kernels(model, {'0': 29, '': 31})
    found = collect_kernels(model)
    assert [kernels.name for kernels in found] == ['1', '2']
    found = collect_kernels(model, 2)
    assert [kernels.grid.kernel_size for kernels in found] == [29, 31, 31]
    assert torch.equal(found[0].weight, model[0].weight[:, 0])
    draw_kernels(found, channels=2)


def test_refusals(backbone, tmp_path):
    with pytest.raises(TypeError, match='a Conv2d, has no peripheral'):
        collect_kernels(torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match='per_stage must be at least 1'):
        collect_kernels(backbone, 0)
    with pytest.raises(ValueError, match='channels must be at least 1'):
        draw_kernels(collect_kernels(backbone), 0)
    with pytest.raises(ValueError, match='PNG'):
        save_figure(draw_grid(SharingGrid(5)), tmp_path / 'a.pdf')
    assert not list(tmp_path.iterdir())
