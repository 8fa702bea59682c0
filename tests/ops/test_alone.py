"""The operator where torch is there and nothing of OpenMMLab is.

In fresh processes, which do not find the libraries.
"""

import pytest
import torch
from torch import nn

from pelk_mm.ops import SharingGrid, peripheral_conv2d
from tests.helpers.operator_cases import require
from tests.helpers.without_libraries import LIBRARIES, run_without


class Convolve(nn.Module):
    def forward(self, x, weight):
        return peripheral_conv2d(x, weight, SharingGrid(13, 2))


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    torch.manual_seed(0)
    arguments = torch.randn(1, 3, 9, 9), torch.randn(3, 1, 9, 9)
    folder = tmp_path_factory.mktemp('exported')
    program = torch.export.export(Convolve(), arguments)
    torch.export.save(program, folder / 'convolve.pt2')
    torch.save([*arguments, Convolve()(*arguments)], folder / 'data.pth')
    return folder


def test_the_operator_runs_and_loads_a_pt2(exported):
    require('cpp')
    done = run_without(f"""
        import torch
        import pelk_mm.ops
        from pelk_mm.ops import SharingGrid, peripheral_conv2d

        x, weight, expected = torch.load({str(exported / 'data.pth')!r})
        x.requires_grad_()
        y = peripheral_conv2d(x, weight, SharingGrid(13, 2), backend='cpp')
        torch.testing.assert_close(y, expected)
        y.sum().backward()
        assert x.grad.abs().sum() > 0
        program = torch.export.load({str(exported / 'convolve.pt2')!r})
        torch.testing.assert_close(program.module()(x, weight), expected)
        assert not {{*{LIBRARIES}}} & sys.modules.keys()
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
    torch.__version__ < '2.6', reason='this torch warns of mmengine'
)
@pytest.mark.parametrize(
    ('absent', 'said'),
    [
        (LIBRARIES, ''),
        (('mmcv',), 'mmcv is not installed: pelk_mm.ops and pelk_mm.models'),
    ],
    ids=['torch alone', 'no mmcv'],
)
def test_importing_the_package_says_what_is_missing(absent, said):
    done = run_without(
        """
        import pelk_mm
        print(pelk_mm.__version__, sorted(pelk_mm.ops.available_backends()))
        try:
            import pelk_mm.engine
        except ModuleNotFoundError as error:
            print(error.name)
        """,
        absent,
    )
    assert done.returncode == 0, done.stderr
    backends, engine = done.stdout.splitlines()
    assert "['cpp', 'dense', 'fft', 'triton']" in backends
    assert engine in absent
    assert said in done.stderr
    lines = [each for each in done.stderr.splitlines() if 'cpp' not in each]
    assert len(lines) == bool(said)
