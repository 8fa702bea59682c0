"""A classifier's weights start segmentors and detectors, or say why not."""

import logging

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage

from pelk_mm.models import PeLK
from pelk_mm.models.utils import load_pretrained
from pelk_mm.utils.config import build_model
from tests.helpers.models import ARCH, CLASSIFIER, DETECTOR, SEGMENTOR

OUTPUT_NORMS = {
    f'norm{i}.{kind}' for i in range(3) for kind in ('weight', 'bias')
}


@pytest.fixture
def classifier():
    """Every parameter and statistic differs from a fresh model's."""
    model = build_model(Config(CLASSIFIER))
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def log():
    """Collects what mmengine logs."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def warnings(log) -> list[str]:
    return [x.getMessage() for x in log if x.levelno >= logging.WARNING]


def with_backbone_from(config: dict, checkpoint, prefix='backbone.'):
    config = Config(config)
    config.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(checkpoint), prefix=prefix
    )
    model = build_model(config)
    model.init_weights()
    return model


def assert_backbone_is(model, expected: dict) -> None:
    own = model.backbone.state_dict()
    # Output norms of stages that a classifier has no output of are new.
    assert own.keys() - expected.keys() == OUTPUT_NORMS
    for name, value in expected.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=0)


def make_plain(model, path):
    torch.save(dict(state_dict=model.state_dict(), meta=dict()), path)


def make_average(model, path):
    """As mmengine's EMAHook saves: the average is the state_dict."""
    averaged = ExponentialMovingAverage(model, update_buffers=True)
    raw = {
        'module.' + name: torch.zeros_like(value)
        for name, value in model.state_dict().items()
    }
    torch.save(
        dict(
            state_dict=averaged.module.state_dict(),
            ema_state_dict=dict(raw, steps=torch.tensor(1)),
        ),
        path,
    )


def make_sparse(model, path):
    for parameter in model.parameters():
        if parameter.ndim in (2, 4):
            parameter.data[torch.rand_like(parameter) < 0.4] = 0
    make_plain(model, path)


def make_parallel(model, path):
    torch.save(
        {
            f'module.{name}': value
            for name, value in model.state_dict().items()
        },
        path,
    )


def make_bare(model, path):
    torch.save(model.backbone.state_dict(), path)


@pytest.mark.parametrize(
    'config', [SEGMENTOR, DETECTOR], ids=['segmentor', 'detector']
)
@pytest.mark.parametrize(
    'make', [make_plain, make_average, make_sparse, make_parallel, make_bare]
)
def test_initialises_other_tasks(config, make, classifier, tmp_path, log):
    make(classifier, tmp_path / 'cls.pth')
    model = with_backbone_from(config, tmp_path / 'cls.pth')
    assert_backbone_is(model, classifier.backbone.state_dict())
    message = next(
        record.getMessage()
        for record in log
        if 'loaded' in record.getMessage()
    )
    total = len(model.backbone.state_dict())
    assert f'loaded {total - 6} of {total} entries' in message
    assert 'norm0.weight, norm0.bias' in message
    assert 'unexpected: none' in message
    if make is make_sparse:
        weight = model.backbone.stages[0].blocks[0].pointwise_conv1.weight
        assert 0.2 < float((weight == 0).float().mean()) < 0.6


def test_level_tells_whether_something_else_is_missing(
    classifier, tmp_path, log
):
    make_plain(classifier, tmp_path / 'cls.pth')
    with_backbone_from(SEGMENTOR, tmp_path / 'cls.pth')
    assert [
        record.levelname for record in log if 'loaded' in record.getMessage()
    ] == ['INFO']
    state = classifier.state_dict()
    del state['backbone.stages.0.blocks.0.gamma']
    torch.save(state, tmp_path / 'no_gamma.pth')
    log.clear()
    with_backbone_from(SEGMENTOR, tmp_path / 'no_gamma.pth')
    (warning,) = (record for record in log if 'loaded' in record.getMessage())
    assert warning.levelname == 'WARNING'
    assert 'stages.0.blocks.0.gamma' in warning.getMessage()


@pytest.mark.parametrize('prefix', ['backbone.', 'backbone', '', None])
def test_spellings_of_the_prefix(prefix, classifier, tmp_path):
    make_plain(classifier, tmp_path / 'cls.pth')
    model = with_backbone_from(SEGMENTOR, tmp_path / 'cls.pth', prefix)
    assert_backbone_is(model, classifier.backbone.state_dict())


def test_two_backbones_are_told_apart_by_the_prefix(classifier, tmp_path):
    state = classifier.state_dict()
    state |= {
        f'teacher.{name}': value + 1
        for name, value in classifier.backbone.state_dict().items()
    }
    torch.save(state, tmp_path / 'both.pth')
    model = with_backbone_from(SEGMENTOR, tmp_path / 'both.pth')
    assert_backbone_is(model, classifier.backbone.state_dict())
    with pytest.raises(RuntimeError, match=r"'backbone\.', 'teacher\.'"):
        with_backbone_from(SEGMENTOR, tmp_path / 'both.pth', 'student.')


@pytest.mark.parametrize('kind', ['Pretrained', 'mmengine.Pretrained'])
def test_a_backbone_alone(kind, classifier, tmp_path):
    make_plain(classifier, tmp_path / 'cls.pth')
    backbone = PeLK(
        ARCH,
        init_cfg=dict(
            type=kind, checkpoint=str(tmp_path / 'cls.pth'), prefix='backbone.'
        ),
    )
    backbone.init_weights()
    expected = classifier.backbone.state_dict()
    for name, value in backbone.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_weights_that_nobody_loaded(tmp_path, log):
    """Without a runner, init_weights() is easily forgotten."""
    path = tmp_path / 'model.pth'
    cfg = dict(type='Pretrained', checkpoint=str(path))
    model = PeLK(ARCH, init_cfg=cfg)
    images = torch.randn(2, 3, 32, 32)
    for _ in range(2):
        model(images)
    assert len(warnings(log)) == 1
    assert f'{path} of init_cfg is loaded by' in warnings(log)[0]
    with pytest.raises(FileNotFoundError, match=str(path)):
        model.init_weights()
    torch.save(model.state_dict(), path)
    loaded, initialised = (PeLK(ARCH, init_cfg=cfg) for _ in range(2))
    load_pretrained(loaded, path)
    initialised.init_weights()
    log.clear()
    for model in loaded, initialised, PeLK(ARCH):
        model(images)
    assert not warnings(log)


def test_initialising_prints_no_tables(capfd):
    normal = dict(type='Normal', layer='Linear', std=1.0)
    model = PeLK(ARCH, init_cfg=[normal])
    model.init_weights()
    assert model.is_init
    assert model.stages[0].blocks[0].pointwise_conv1.weight.std() > 0.5
    assert capfd.readouterr() == ('', '')


def test_a_stem_for_other_images_starts_anew(classifier, tmp_path, log):
    make_plain(classifier, tmp_path / 'cls.pth')
    model = with_backbone_from(
        SEGMENTOR
        | dict(
            model=SEGMENTOR['model']
            | dict(
                backbone=SEGMENTOR['model']['backbone'] | dict(in_channels=4)
            )
        ),
        tmp_path / 'cls.pth',
    )
    name = 'downsample_layers.0.0.weight'
    texts = [record.getMessage() for record in log]
    assert (
        f'{name} is (8, 3, 4, 4) in the checkpoint, for images of 3 channels, '
        'and (8, 4, 4, 4) in the model: it starts at random, the rest is '
        'loaded'
    ) in texts
    expected = classifier.backbone.state_dict()
    three = expected.pop(name)
    own = model.backbone.state_dict()
    assert own.pop(name).shape == (8, 4, 4, 4)
    for key, value in expected.items():
        assert torch.equal(own[key], value)
    # Whoever asks for the weights themselves gets all or an error.
    for load in (
        lambda: load_pretrained(model.backbone, str(tmp_path / 'cls.pth')),
        lambda: model.backbone.load_state_dict(
            {**own, name: three}, strict=False
        ),
    ):
        with pytest.raises(RuntimeError, match=name):
            load()


def other_arch(**changes):
    return PeLK({**ARCH, **changes}).state_dict()


@pytest.mark.parametrize(
    'content, message',
    [
        (
            lambda: dict(state_dict={'fc.weight': torch.zeros(2)}),
            r'no PeLK or ConvNeXt.*no prefix at all.*fc\.weight',
        ),
        (lambda: dict(state_dict={}), 'no state dict of tensors'),
        (lambda: [1, 2], 'holds a list'),
        (lambda: other_arch(depths=(1, 1, 3, 1)), r'\[1, 1, 3, 1\] blocks'),
        (lambda: other_arch(channels=(8, 12, 16, 24)), 'another arch'),
        (lambda: other_arch(kernel_sizes=(31, 11, 9, 7)), 'grow_kernel'),
    ],
    ids=['another model', 'empty', 'list', 'depths', 'channels', 'kernels'],
)
def test_unfit_checkpoints_are_errors(content, message, tmp_path):
    torch.save(content(), tmp_path / 'bad.pth')
    with pytest.raises(RuntimeError, match=f'(?s){message}') as error:
        with_backbone_from(SEGMENTOR, tmp_path / 'bad.pth')
    assert 'bad.pth' in str(error.value)


def test_merged_weights_are_an_error_in_training_form(classifier, tmp_path):
    classifier.backbone.switch_to_deploy()
    make_plain(classifier, tmp_path / 'deploy.pth')
    with pytest.raises(RuntimeError, match='deploy=True'):
        with_backbone_from(SEGMENTOR, tmp_path / 'deploy.pth')


class Surprise:
    """Unpickling it shows that code in the file was run."""

    def __reduce__(self):
        return pytest.fail, ('code in a checkpoint was run',)


def test_files_that_are_no_checkpoints(classifier, tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        with_backbone_from(SEGMENTOR, tmp_path / 'nowhere.pth')
    (tmp_path / 'text.pth').write_text('<html>404</html>')
    with pytest.raises(RuntimeError, match=r'text\.pth'):
        with_backbone_from(SEGMENTOR, tmp_path / 'text.pth')
    make_plain(classifier, tmp_path / 'whole.pth')
    content = (tmp_path / 'whole.pth').read_bytes()
    (tmp_path / 'half.pth').write_bytes(content[: len(content) // 2])
    with pytest.raises(RuntimeError, match=r'half\.pth is not a whole'):
        with_backbone_from(SEGMENTOR, tmp_path / 'half.pth')
    torch.save(
        dict(classifier.state_dict(), surprise=Surprise()),
        tmp_path / 'evil.pth',
    )
    with pytest.raises(RuntimeError, match='--trust'):
        with_backbone_from(SEGMENTOR, tmp_path / 'evil.pth')
