"""What others do to a network leaves its output, and its merge, as it was.

Each case changes a whole PeLK as torch, mmcv or mmengine do. The changed
network is held against the one that it was made from where the change should
keep the output, and after ``switch_to_deploy()`` against itself.
"""

import copy

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.model import (
    ExponentialMovingAverage,
    StochasticWeightAverage,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from torch import nn
from torch.ao import quantization
from torch.nn.utils import (
    fusion,
    parametrizations,
    parametrize,
    prune,
    spectral_norm,
    weight_norm,
)
from torch.optim.swa_utils import AveragedModel
from torchvision.ops import FrozenBatchNorm2d

from pelk_mm.deployment.standard_layers import to_standard_layers
from pelk_mm.models import PeLK
from pelk_mm.models.layers import PartialPeripheralConv2d

ARCH = dict(
    depths=(1, 1, 2, 1), channels=(8, 12, 16, 24), kernel_sizes=(13, 9, 7, 5)
)


class Doubled(nn.Module):
    """A parametrization of one tensor."""

    def forward(self, x):
        return 2 * x


def convolutions(model):
    """The convolutions of the branches, large and small."""
    for part in model.modules():
        if isinstance(part, PartialPeripheralConv2d):
            yield from filter(None, (part.large, part.small))


def norms(model):
    for part in model.modules():
        if isinstance(part, PartialPeripheralConv2d):
            yield from (part.large_norm, part.small_norm)


def each(change, parts=convolutions):
    def apply(model):
        for part in list(parts(model)):
            change(part)

    return apply


def prune_stages(model):
    for stage in model.stages:
        prune.random_unstructured(stage, 'pos_embed', 0.4)


def weights_then_all(module):
    """Pruning of what a weight is derived from."""
    weight_norm(module)
    prune.l1_unstructured(module, 'weight_v', 0.4)


def fuse_by_hand(model):
    for part in model.modules():
        if isinstance(part, PartialPeripheralConv2d):
            part.small = fusion.fuse_conv_bn_eval(part.small, part.small_norm)
            part.small_norm = nn.Identity()


#: These keep the output.
KEEPING = {
    'nothing': lambda model: None,
    'weight_norm': each(weight_norm),
    'weight_norm, parametrized': each(parametrizations.weight_norm),
    'mmcv fuse_conv_bn': fuse_conv_bn,
    'torch fuse_conv_bn_eval': fuse_by_hand,
    'SyncBN': nn.SyncBatchNorm.convert_sync_batchnorm,
    # Which makes norms in training mode, whatever they were.
    'mmengine SyncBN': lambda model: convert_sync_batchnorm(model).eval(),
    'mmengine without SyncBN': lambda model: revert_sync_batchnorm(
        convert_sync_batchnorm(model)
    ).eval(),
    'deepcopy': copy.deepcopy,
    'SWA': lambda model: AveragedModel(model).module,
    'EMA': lambda model: ExponentialMovingAverage(model).module,
    'mmengine SWA': lambda model: StochasticWeightAverage(model).module,
}
#: These change it; only merging must not.
CHANGING = {
    'prune': each(lambda part: prune.l1_unstructured(part, 'weight', 0.4)),
    'prune twice': each(
        lambda part: prune.ln_structured(
            prune.l1_unstructured(part, 'weight', 0.4), 'weight', 0.5, 2, 0
        )
    ),
    'prune norms': each(
        lambda part: prune.random_unstructured(part, 'weight', 0.4), norms
    ),
    'prune embeddings': prune_stages,
    'prune weight_norm': each(weights_then_all),
    'spectral_norm': each(spectral_norm),
    'spectral_norm, parametrized': each(parametrizations.spectral_norm),
    'a parametrization': each(
        lambda part: parametrize.register_parametrization(
            part, 'weight', Doubled()
        )
    ),
}


def close(got, expected, tolerance=1e-5):
    assert len(got) == len(expected)
    for y, z in zip(got, expected, strict=True):
        assert (y - z).abs().max() <= tolerance * z.abs().max()


@pytest.fixture
def network(request, randomise):
    """In eval mode; ``center_radius`` 1 leaves small kernels by themselves."""
    torch.manual_seed(0)
    arch = dict(ARCH, center_radius=getattr(request, 'param', 2))
    model = PeLK(arch, out_indices=range(4), layer_scale_init_value=1.0)
    return randomise(model).eval()


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('network', [1, 2], indirect=True)
@pytest.mark.parametrize('name', [*KEEPING, *CHANGING])
@torch.no_grad()
def test_merging_keeps_the_output(name, network):
    before = network(IMAGES)
    changed = (KEEPING | CHANGING)[name](network) or network
    expected = changed(IMAGES)
    if name in KEEPING:
        close(expected, before)
    changed.switch_to_deploy()
    close(changed(IMAGES), expected)
    # Nothing derives weights any more, and it loads where it is built merged.
    built = PeLK(network.arch, out_indices=range(4), deploy=True).eval()
    built.load_state_dict(changed.state_dict())


def observed(network):
    network.qconfig = quantization.get_default_qconfig()
    return quantization.prepare(network)


def trained_to_be_quantised(network):
    """Its rounding is off: it would double the differences of merging."""
    network.qconfig = quantization.get_default_qat_qconfig()
    network = quantization.prepare_qat(network.train()).eval()
    return network.apply(quantization.disable_fake_quant)


def quantised_linears(network):
    return quantization.quantize_dynamic(network, {nn.Linear})


@pytest.mark.parametrize(
    ('prepare', 'tolerance'),
    [
        (observed, 1e-5),
        (trained_to_be_quantised, 1e-5),
        # Activations of 8 bits.
        (quantised_linears, 0.05),
    ],
)
@pytest.mark.filterwarnings('ignore')
@torch.no_grad()
def test_prepared_for_quantisation(prepare, tolerance, network):
    before = network(IMAGES)
    network = prepare(network)
    expected = network(IMAGES)
    close(expected, before, tolerance)
    network.switch_to_deploy()
    close(network(IMAGES), expected, tolerance)


@torch.no_grad()
def test_derived_weights_are_up_to_date(network):
    """torch computes them before a pass, which may have been long ago."""
    KEEPING['weight_norm'](network)
    for part in convolutions(network):
        part.weight_g.mul_(1.5)
    twin = copy.deepcopy(network.requires_grad_(False))
    expected = network(IMAGES)
    twin.switch_to_deploy()
    close(twin(IMAGES), expected)


def test_frozen_and_training(network):
    """Parameters stay parameters, and what spectral_norm found is kept."""
    CHANGING['spectral_norm, parametrized'](network)
    network.requires_grad_(False)
    expected = network(IMAGES)
    network.train().switch_to_deploy()
    close(network.eval()(IMAGES), expected)
    assert not any(value.requires_grad for value in network.parameters())


@torch.no_grad()
def test_pruned_after_merging_as_standard_layers(network):
    network.switch_to_deploy()
    CHANGING['prune'](network)
    expected = network(IMAGES)
    close(to_standard_layers(network, 'compact')(IMAGES), expected)


def frozen_norm(part):
    part.large_norm = FrozenBatchNorm2d(part.split[0])


def wrapped(part):
    part.large = nn.Sequential(part.large)


def computed(part):
    weight = part.large.weight.detach()
    del part.large.weight
    part.large.weight = weight


def batch_statistics(part):
    torch.func.replace_all_batch_norm_modules_(part)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (frozen_norm, 'got FrozenBatchNorm2d'),
        (wrapped, 'got Sequential'),
        (computed, 'weight of PeripheralConv2d is computed'),
        (batch_statistics, 'BatchNorm with running statistics'),
    ],
)
def test_what_cannot_be_merged_is_named(change, message, network):
    change(network.stages[1].blocks[0].conv)
    with pytest.raises(TypeError, match=message):
        network.switch_to_deploy()
    assert not network.deploy
