"""Mistakes are named before training, and right configs pass."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from PIL import Image

from pelk_mm.engine.preflight.checks import preflight
from pelk_mm.models import PeLK
from pelk_mm.utils.config import build_model
from pelk_mm.utils.errors import LaunchError
from tests.helpers.models import ARCH, CLASSIFIER, DETECTOR, SEGMENTOR
from tests.helpers.toy_task import TOY_CONFIG


def draw(path, size=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(
        0, 255, (size, size, 3), dtype=np.uint8
    )
    Image.fromarray(noise).save(path)


def loader(dataset: dict) -> dict:
    return dict(batch_size=1, num_workers=0, dataset=dataset)


@pytest.fixture
def classification(tmp_path) -> Config:
    for name in 'abc':
        draw(tmp_path / 'data' / 'train' / name / '0.jpg')
    dataset = dict(
        type='CustomDataset',
        data_root=str(tmp_path / 'data'),
        data_prefix='train',
        metainfo=dict(classes=tuple('abc')),
    )
    return Config(
        dict(
            CLASSIFIER,
            train_dataloader=loader(dataset),
            val_dataloader=loader(dataset),
            test_dataloader=loader(dataset),
        )
    )


@pytest.fixture
def segmentation(tmp_path) -> Config:
    draw(tmp_path / 'img' / '0.jpg')
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(
        tmp_path / 'img' / '0.png'
    )
    return Config(
        dict(
            SEGMENTOR,
            train_dataloader=loader(
                dict(
                    type='BaseSegDataset',
                    data_root=str(tmp_path),
                    data_prefix=dict(img_path='img', seg_map_path='img'),
                    metainfo=dict(classes=tuple('abc')),
                )
            ),
        )
    )


@pytest.fixture
def detection(tmp_path) -> Config:
    draw(tmp_path / 'img' / '0.jpg')
    (tmp_path / 'coco.json').write_text(
        json.dumps(
            dict(
                images=[dict(id=0, file_name='0.jpg', width=40, height=40)],
                annotations=[],
                categories=[dict(id=1, name='a'), dict(id=2, name='b')],
            )
        )
    )
    return Config(
        dict(
            DETECTOR,
            train_dataloader=loader(
                dict(
                    # As in the configs that repeat their data.
                    type='RepeatDataset',
                    times=2,
                    dataset=dict(
                        type='CocoDataset',
                        data_root=str(tmp_path),
                        ann_file='coco.json',
                        data_prefix=dict(img='img'),
                        metainfo=dict(classes=('a', 'b')),
                    ),
                )
            ),
        )
    )


def refuses(config: Config, message: str, **kwargs) -> str:
    with pytest.raises(LaunchError, match=message) as error:
        preflight(config, **kwargs)
    return str(error.value)


@pytest.mark.parametrize(
    'task', ['classification', 'segmentation', 'detection']
)
def test_right_configs_pass_unchanged(task, request):
    config = request.getfixturevalue(task)
    before = config.pretty_text
    preflight(config)
    assert config.pretty_text == before


def test_configs_of_other_kinds_pass():
    preflight(Config.fromstring(TOY_CONFIG, '.py'))


def test_archives_are_left_to_their_data_set(classification, tmp_path):
    (tmp_path / 'cifar').mkdir()
    classification.train_dataloader.dataset = dict(
        type='CIFAR10', data_prefix=str(tmp_path / 'cifar')
    )
    # Only its ten classes are compared.
    refuses(classification, 'has 10 classes')


def test_a_file_instead_of_a_folder(classification, tmp_path):
    (tmp_path / 'data' / 'val').write_text('train')
    classification.val_dataloader.dataset.data_prefix = 'val'
    refuses(classification, 'val is a file, expected a folder')


def test_folder_without_images(segmentation, tmp_path):
    (tmp_path / 'empty' / 'deeper').mkdir(parents=True)
    (tmp_path / 'empty' / 'deeper' / 'notes.txt').write_text('hi')
    segmentation.train_dataloader.dataset.data_prefix.img_path = 'empty'
    refuses(segmentation, 'empty holds no image')


@pytest.mark.parametrize('damage', ['truncated', 'text', 'nothing'])
def test_images_that_cannot_be_decoded(damage, classification, tmp_path):
    path = tmp_path / 'data' / 'train' / 'b' / '0.jpg'
    content = path.read_bytes()
    path.write_bytes(
        {
            'truncated': content[: len(content) // 2],
            'text': b'<html>404</html>',
            'nothing': b'',
        }[damage]
    )
    refuses(classification, r'b/0\.jpg (cannot be decoded|is not an image)')


def test_a_folder_too_many(classification, tmp_path):
    draw(tmp_path / 'data' / 'train' / 'd' / '0.jpg')
    refuses(classification, '4 subfolders and the data set 3 classes')


@pytest.mark.parametrize(
    'content, message',
    [
        ('not json', 'is no JSON'),
        ('[]', 'it has no annotations, categories, images'),
        ('{"images": [], "annotations": []}', 'it has no categories'),
        (
            '{"images": [], "annotations": [], "categories": '
            '[{"name": "a"}, {"name": "b"}]}',
            'names no image',
        ),
        (
            '{"images": [{}], "annotations": [], '
            '"categories": [{"name": "a"}]}',
            'no category b of the classes',
        ),
    ],
)
def test_annotations_that_are_not_coco(content, message, detection, tmp_path):
    (tmp_path / 'coco.json').write_text(content)
    refuses(detection, message)


def test_classes_of_data_and_head(detection):
    detection.model.bbox_head.num_classes = 80
    refuses(
        detection,
        r'model\.bbox_head\.num_classes is 80, .* has 2 classes: a, b',
    )


def test_heads_that_count_something_else(detection):
    detection.model.bbox_head.num_classes = 1
    preflight(detection)


def test_channels_of_neck_and_heads(detection):
    detection.model.neck.in_channels = [96, 192, 384, 768]
    refuses(detection, r'in_channels=\[96, 192, 384, 768\].*PeLK')


def save_weights(config: Config, path) -> dict:
    state = build_model(config).state_dict()
    torch.save(dict(state_dict=state), path)
    return state


def test_a_head_of_other_classes_starts_anew_only_if_asked(
    classification, tmp_path
):
    other = Config(CLASSIFIER)
    other.model.head.num_classes = 7
    other.model.backbone.layer_scale_init_value = 0.5
    save_weights(other, tmp_path / 'seven.pth')
    classification.load_from = str(tmp_path / 'seven.pth')
    message = refuses(classification, r'head\.fc\.weight is \(7, 20\)')
    assert 'new_head=True' in message
    classification.new_head = True
    preflight(classification)
    # What the runner then does.
    model = build_model(classification)
    before = model.head.fc.weight.clone()
    loaded = load_checkpoint(model, str(tmp_path / 'seven.pth'))
    assert torch.equal(model.head.fc.weight, before)
    name = 'stages.0.blocks.0.gamma'
    assert torch.equal(
        model.backbone.state_dict()[name],
        loaded['state_dict'][f'backbone.{name}'],
    )
    # Neither a resumed training nor a test can have another head.
    refuses(classification, 'does not fit', training=False)
    classification.resume = True
    refuses(classification, 'does not fit')


def test_checkpoints_of_other_models(classification, tmp_path):
    classification.load_from = str(tmp_path / 'x.pth')
    refuses(classification, 'x.pth')
    torch.save({'fc.weight': torch.zeros(1)}, tmp_path / 'x.pth')
    refuses(classification, 'holds no weight of this model')
    other = Config(CLASSIFIER)
    other.model.backbone.arch = dict(ARCH, depths=(1, 1, 1, 1))
    save_weights(other, tmp_path / 'x.pth')
    refuses(classification, 'another arch')
    save_weights(classification, tmp_path / 'x.pth')
    preflight(classification)


def test_a_test_needs_every_weight(classification, tmp_path):
    classification.load_from = str(tmp_path / 'x.pth')
    state = save_weights(classification, tmp_path / 'x.pth')
    preflight(classification, training=False)
    del state['head.fc.bias']
    torch.save(state, tmp_path / 'x.pth')
    preflight(classification)
    refuses(
        classification,
        r'lacks 1 of the \d+ entries.*head\.fc\.bias',
        training=False,
    )


def test_pretrained_backbones(segmentation, tmp_path):
    path = tmp_path / 'backbone.pth'
    segmentation.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(path), prefix='backbone.'
    )
    refuses(segmentation, r'model\.backbone\.init_cfg: .*backbone\.pth')
    torch.save(PeLK(dict(ARCH, channels=(8, 12, 16, 24))).state_dict(), path)
    refuses(segmentation, 'another arch')
    torch.save(PeLK(ARCH).state_dict(), path)
    preflight(segmentation)


def test_all_problems_are_named_at_once(classification, tmp_path):
    draw(tmp_path / 'data' / 'train' / 'd' / '0.jpg')
    classification.model.head.in_channels = 3
    message = refuses(classification, 'the run would fail')
    assert '4 subfolders' in message and 'in_channels=3' in message


@pytest.mark.parametrize(
    'field, value, message',
    [
        (
            'arch',
            'tinny',
            r"PeLK: unknown arch 'tinny' \(did you mean 'tiny'\?\)",
        ),
        ('drop_path_rate', 'much', 'PeLK: drop_path_rate must be a number'),
        ('small_kernels', 5, r"no argument 'small_kernels' \(did you mean"),
        ('type', 'PeKL', r"no PeKL in the registry .*did you mean 'PeLK'"),
    ],
)
def test_models_that_cannot_be_built(field, value, message, classification):
    classification.model.backbone[field] = value
    refuses(classification, f'^the model cannot be built: .*{message}')


def test_models_for_real_devices_only_are_checked_too(
    classification, monkeypatch
):
    from pelk_mm.engine.preflight import checks as module

    build = module.build_model

    def build_on_real_devices(config, device='cpu'):
        if device == 'meta':
            raise NotImplementedError('no kernel for meta')
        return build(config, device)

    monkeypatch.setattr(module, 'build_model', build_on_real_devices)
    preflight(classification)
    classification.model.head.in_channels = 3
    refuses(classification, 'in_channels=3')


@pytest.mark.parametrize(
    'paramwise, message',
    [
        (dict(decay_rate='x'), 'optim_wrapper: decay_rate must be a number'),
        (
            dict(decay_rate=0.7, num_layers=99),
            'num_layers=99, but the backbone',
        ),
    ],
)
def test_layer_decay(paramwise, message, classification):
    classification.optim_wrapper = dict(
        optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        constructor='LayerDecayOptimWrapperConstructor',
        paramwise_cfg=paramwise,
    )
    refuses(classification, message)
    classification.optim_wrapper.paramwise_cfg = dict(decay_rate=0.7)
    preflight(classification)


def annotate(tmp_path, **fields) -> None:
    annotation = dict(
        id=1, image_id=0, category_id=1, bbox=[1, 1, 9, 9], area=81
    )
    content = json.loads((tmp_path / 'coco.json').read_text())
    content['annotations'] = [annotation, {**annotation, 'id': 2, **fields}]
    (tmp_path / 'coco.json').write_text(json.dumps(content))


def test_annotations_that_would_end_the_training(detection, tmp_path):
    annotate(tmp_path, bbox=None)
    message = refuses(detection, 'coco.json: an annotation has no bbox: once')
    assert 'annotation 2' in message
    annotate(tmp_path)
    preflight(detection)
    (tmp_path / 'img' / '0.jpg').rename(tmp_path / 'img' / '1.jpg')
    refuses(detection, 'an image is not in the folder: once, .*0.jpg')
    draw(tmp_path / 'img' / '0.jpg', size=41)
    refuses(detection, 'another width and height than its file')


def test_annotations_that_are_left_out_are_counted(
    detection, tmp_path, monkeypatch
):
    from pelk_mm.engine.preflight import data as module

    lines = []
    monkeypatch.setattr(
        module, 'print_log', lambda line, *_, **__: lines.append(line)
    )
    annotate(tmp_path, bbox=[1, 1, 0, 9])
    preflight(detection)
    (line,) = [line for line in lines if 'left out' in line]
    assert 'coco.json' in line and 'annotation 2' in line


def test_labels_of_a_segmentation(segmentation, tmp_path):
    label = tmp_path / 'img' / '0.png'

    def write(value, size=40):
        Image.fromarray(np.full((size, size), value, np.uint8)).save(label)

    write(2)
    preflight(segmentation)
    write(3)
    refuses(segmentation, 'expected to be 0 to 2, or 255 .*0.png has 3')
    segmentation.train_dataloader.dataset.reduce_zero_label = True
    preflight(segmentation)
    write(3, size=39)
    refuses(segmentation, r'0.png has \(39, 39\), .*0.jpg \(40, 40\)')
    label.unlink()
    draw(tmp_path / 'img' / 'other.png')
    refuses(segmentation, '1 of the 1 images have no labels: .*lacks 0.png')
    segmentation.train_dataloader.dataset.img_suffix = '.bmp'
    refuses(segmentation, 'no file in .* ends in .bmp, the img_suffix')
