"""mmengine's counters see large kernels as torch's does."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.analysis import (
    ActivationAnalyzer,
    FlopAnalyzer,
    get_model_complexity_info,
)
from torch.utils.flop_counter import FlopCounterMode

from pelk_mm.models import PeLK
from tests.helpers import forked
from tests.helpers.models import ARCH, CONFIG

NAME = 'pelk_mm::peripheral_conv2d'


@pytest.mark.parametrize('backend', ['dense', None])
@pytest.mark.parametrize('merged', [False, True])
@torch.no_grad()
def test_agrees_with_torchs_counter(merged, backend):
    model = PeLK(ARCH, backend=backend).eval()
    if merged:
        model.switch_to_deploy()
    x = torch.randn(1, 3, 64, 64)
    with FlopCounterMode(display=False) as counter:
        model(x)
    counts = counter.get_flop_counts()['Global']
    operator = torch.ops.pelk_mm.peripheral_conv2d
    analyzer = FlopAnalyzer(model, x)
    assert (
        2 * analyzer.by_operator()['peripheral_conv2d'] == counts[operator] > 0
    )
    assert NAME not in analyzer.unsupported_ops()
    # Elements of the maps that convolutions give, as those of aten.
    activations = ActivationAnalyzer(model, x).by_operator()['conv']
    own = sum(
        depth * int(0.375 * channels) * (16 >> i) ** 2
        for i, (depth, channels) in enumerate(
            zip(ARCH['depths'], ARCH['channels'], strict=True)
        )
    )
    strided = sum(
        channels * (16 >> i) ** 2
        for i, channels in enumerate(ARCH['channels'])
    )
    assert activations == own * (1 if merged else 2) + strided


@torch.no_grad()
def test_dense_is_counted_as_a_convolution():
    """All of K x K, as mmengine counts nn.Conv2d."""
    model = PeLK(ARCH, out_indices=0, small_kernel=None, backend='dense')
    info = get_model_complexity_info(model.eval(), (3, 64, 64))
    others = FlopAnalyzer(model, torch.randn(1, 3, 64, 64)).by_operator()
    large = int(0.375 * ARCH['channels'][0]) * 16**2 * 13**2
    assert others.pop('peripheral_conv2d') == large
    assert info['flops'] == large + sum(others.values())


def test_librarys_own_tool(tmp_path):
    """mmpretrain's."""
    config = tmp_path / 'config.py'
    text = CONFIG.replace("'PeLK'", "'pelk_mm.PeLK'")
    config.write_text(text.format(classes=3))
    folder = Path(find_spec('mmpretrain').origin).parent / '.mim'
    tool = folder / 'tools/analysis_tools/get_flops.py'
    # So wide that no word ends with an ellipsis: not all locales have one.
    wide = dict(COLUMNS='400')
    done = forked.run(tool, config, '--shape', 64, environment=wide)
    assert done.returncode == 0, done.stderr[-2000:]
    info = get_model_complexity_info(PeLK(ARCH).eval(), (3, 64, 64))
    assert f'Flops: {info["flops_str"]}' in done.stdout
    assert f'operator {NAME}' not in done.stdout + done.stderr
