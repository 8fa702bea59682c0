"""What trains without a crash, and wrongly, is seen in the samples."""

import json

import numpy as np
import pytest
from PIL import Image
from torch import nn

from pelk_mm.engine.rehearsal.failures import why
from pelk_mm.utils.errors import LaunchError
from tests.engine.rehearsal.conftest import draw


def refuses(rehearse, config, message) -> None:
    with pytest.raises(LaunchError, match=message):
        rehearse(config)


def write(folder, value, size=(40, 40), kind=np.uint8, mode=None) -> None:
    """The same labels for every picture, 0 with a bar of ``value``."""
    for i in range(4):
        values = np.zeros(size, kind)
        values[10:20] = value
        image = Image.fromarray(values)
        image = image if mode is None else image.convert(mode)
        image.save(folder / f'{i}.png')


def warned(told: list[str], text: str) -> str:
    (line,) = [line for line in told if text in line]
    return line


# Classification


def test_more_folders_than_the_head_has_classes(
    classification, rehearse, tmp_path
):
    classification.model.head.num_classes = 2
    refuses(
        rehearse,
        classification,
        r'model\.head\.num_classes=2 expects labels of 0 to 1, got 2 .*c/',
    )


def test_labels_of_a_list(classification, rehearse, tmp_path):
    lines = [f'{name}/{i}.jpg {i // 2}' for i, name in enumerate('aabbcc')]
    lines[-1] = 'c/5.jpg 9'
    (tmp_path / 'list.txt').write_text('\n'.join(lines))
    classification.train_dataloader.dataset.ann_file = 'list.txt'
    refuses(rehearse, classification, r'0 to 2, got 9 .*c/5\.jpg')


def test_more_classes_in_the_head(classification, rehearse, told):
    """It may be right: what is left over is never learned."""
    classification.model.head.num_classes = 5
    rehearse(classification)
    line = warned(told, 'num_classes')
    assert 'num_classes is 5, the data set has 3 classes: a, b, c' in line


def test_several_problems_at_once(classification, rehearse):
    dataset = classification.train_dataloader.dataset
    other = dict(dataset, metainfo=dict(classes=('b', 'a', 'c')))
    classification.train_dataloader.dataset = dict(
        type='ConcatDataset',
        datasets=[dataset, other],
        ignore_keys=['classes'],
    )
    refuses(rehearse, classification, "label 0 is 'a' in .* and 'b' in")


# Segmentation


def test_masks_of_0_and_255(segmentation, rehearse, told, tmp_path):
    classes = dict(classes=('background', 'crack'), palette=[[0] * 3] * 2)
    segmentation.train_dataloader.dataset.metainfo = classes
    segmentation.val_dataloader.dataset.metainfo = classes
    segmentation.model.decode_head.num_classes = 2
    write(tmp_path / 'img', 255)
    rehearse(segmentation)
    line = warned(told, 'ignored')
    assert 'no pixel of crack in the 4 maps' in line and '255' in line
    told.clear()
    write(tmp_path / 'img', 1)
    rehearse(segmentation)
    assert not [line for line in told if 'ignored' in line]


def test_zero_made_into_255(segmentation, rehearse, told, tmp_path):
    """reduce_zero_label on labels that begin with 0."""
    write(tmp_path / 'img', 1)
    for split in ('train', 'val'):
        dataset = segmentation[f'{split}_dataloader'].dataset
        dataset.reduce_zero_label = True
    rehearse(segmentation)
    assert 'no pixel of sea, ship' in warned(told, 'ignored')


def test_a_few_of_many_classes_are_no_matter(
    segmentation, rehearse, told, tmp_path
):
    names = tuple(f'class {i}' for i in range(20))
    for split in ('train', 'val'):
        segmentation[f'{split}_dataloader'].dataset.metainfo = dict(
            classes=names, palette=[[0] * 3] * 20
        )
    segmentation.model.decode_head.num_classes = 20
    labels = np.random.default_rng(0).choice([0, 3, 7, 255], (40, 40))
    for i in range(4):
        path = tmp_path / 'img' / f'{i}.png'
        Image.fromarray(labels.astype(np.uint8)).save(path)
    rehearse(segmentation)
    assert not [line for line in told if 'ignored' in line]


def test_labels_beyond_the_classes(segmentation, rehearse, tmp_path):
    write(tmp_path / 'img', 3)
    refuses(
        rehearse,
        segmentation,
        'labels of 0 to 2, or 255 for what is ignored, got 3 .*png',
    )
    segmentation.train_dataloader.dataset.reduce_zero_label = True
    segmentation.val_dataloader.dataset.reduce_zero_label = True
    rehearse(segmentation)
    # As the first class.
    write(tmp_path / 'img', 4)
    refuses(rehearse, segmentation, 'labels of 0 to 2, .* got 3 ')


def test_one_output_for_two_classes(segmentation, rehearse, tmp_path):
    head = segmentation.model.decode_head
    head.update(num_classes=2, out_channels=1, threshold=0.5)
    head.loss_decode = dict(type='CrossEntropyLoss', use_sigmoid=True)
    classes = dict(classes=('a', 'crack'), palette=[[0] * 3] * 2)
    for split in ('train', 'val'):
        segmentation[f'{split}_dataloader'].dataset.metainfo = classes
    write(tmp_path / 'img', 1)
    rehearse(segmentation)


def test_16_bits_would_be_cut_to_8(segmentation, rehearse, tmp_path):
    write(tmp_path / 'img', 300, kind=np.uint16)
    refuses(rehearse, segmentation, r'a label of 300 .*as 8 bits')
    write(tmp_path / 'img', 2, kind=np.uint16)
    rehearse(segmentation)


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'LA'])
def test_colours(mode, segmentation, rehearse, tmp_path):
    write(tmp_path / 'img', 1, mode=mode)
    refuses(rehearse, segmentation, r'0\.png: .*colours.* L or P')


def test_labels_of_another_size(segmentation, rehearse, tmp_path):
    write(tmp_path / 'img', 1, size=(40, 39))
    refuses(rehearse, segmentation, r'\(39, 40\) pixels, the image \(40, 40\)')


def test_labels_of_a_turned_image(segmentation, rehearse, tmp_path):
    write(tmp_path / 'img', 1, size=(40, 30))
    exif = Image.Exif()
    exif[0x112] = 6
    for i in range(4):
        Image.new('RGB', (40, 30)).save(tmp_path / f'img/{i}.jpg', exif=exif)
    write(tmp_path / 'img', 1, size=(30, 40))
    refuses(rehearse, segmentation, 'EXIF')


def test_an_image_without_labels(segmentation, rehearse, tmp_path):
    (tmp_path / 'img' / '3.png').unlink()
    refuses(rehearse, segmentation, r'there is no .*3\.png')


def test_a_suffix_that_no_file_has(segmentation, rehearse):
    segmentation.train_dataloader.dataset.img_suffix = '.bmp'
    with pytest.raises(ValueError, match='at least one') as caught:
        rehearse(segmentation)
    line = why(caught.value, nn.Identity(), segmentation)
    assert 'img ends in .bmp, its img_suffix' in line


# Detection


def change(tmp_path, **fields) -> None:
    content = json.loads((tmp_path / 'coco.json').read_text())
    content.update(fields)
    (tmp_path / 'coco.json').write_text(json.dumps(content))


def test_a_category_listed_twice(detection, rehearse, tmp_path):
    change(
        tmp_path,
        categories=[
            dict(id=0, name='cat', supercategory='none'),
            dict(id=1, name='cat', supercategory='cat'),
            dict(id=2, name='dog', supercategory='cat'),
        ],
    )
    refuses(rehearse, detection, r'3 categories .* 2 classes .*listed twice')


def test_a_comma_forgotten(detection, rehearse):
    detection.train_dataloader.dataset.metainfo.classes = 'cat'
    refuses(rehearse, detection, r"classes='cat' is a str.*\('cat', \)")


def test_single_letters(detection, rehearse, told):
    for split in ('train', 'val'):
        dataset = detection[f'{split}_dataloader'].dataset
        dataset.metainfo.classes = ('d', 'o', 'g')
    detection.train_dataloader.dataset.filter_cfg = None
    with pytest.raises(LaunchError):
        rehearse(detection)
    assert "is 'dog' the name of one" in warned(told, 'single letters')


def test_letters_in_their_order_are_classes(classification, rehearse, told):
    rehearse(classification)
    assert not [line for line in told if 'letters' in line]


def test_parts_of_other_classes(detection, rehearse):
    dataset = detection.train_dataloader.dataset
    other = dict(dataset, metainfo=dict(classes=('dog',)))
    detection.train_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[dataset, other]
    )
    refuses(rehearse, detection, "label 0 is 'cat' in .* and 'dog' in")


def test_parts_of_fewer_classes(detection, rehearse, tmp_path):
    """The labels of both mean the same."""
    dataset = detection.train_dataloader.dataset
    other = dict(dataset, metainfo=dict(classes=('cat',)))
    detection.train_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[dataset, other]
    )
    rehearse(detection)


def test_head_of_80_classes(detection, rehearse, told):
    """It trains; where it predicts them, metrics fail."""
    detection.model.bbox_head.num_classes = 80
    refuses(rehearse, detection, 'metrics .*num_classes is 80, .* 2 classes')
    detection.val_cfg = detection.val_dataloader = None
    detection.val_evaluator = None
    rehearse(detection)
    told[:] = told[-2:]
    line = warned(told, 'num_classes')
    assert 'is 80, the data set has 2 classes: cat, dog' in line


def test_head_of_fewer_classes(detection, rehearse):
    for split in ('train', 'val'):
        dataset = detection[f'{split}_dataloader'].dataset
        dataset.metainfo.classes = ('cat', 'dog', 'cow')
    change(tmp_path=_root(detection), categories=_three())
    content = json.loads((_root(detection) / 'coco.json').read_text())
    content['annotations'][0]['category_id'] = 3
    change(_root(detection), annotations=content['annotations'])
    refuses(rehearse, detection, 'labels of 0 to 1, got 2')


def _root(config):
    from pathlib import Path

    return Path(config.train_dataloader.dataset.data_root)


def _three() -> list[dict]:
    names = ('cat', 'dog', 'cow')
    return [dict(id=i + 1, name=name) for i, name in enumerate(names)]


def test_no_category_of_the_classes(detection, rehearse):
    detection.train_dataloader.dataset.metainfo.classes = ('bird', 'fish')
    refuses(rehearse, detection, 'no category bird, fish of the classes')


def test_no_object_at_all(detection, rehearse, told, tmp_path):
    change(tmp_path, annotations=[])
    rehearse(detection)
    assert '4 samples' in warned(told, 'there is no object')


def test_annotations_that_are_left_out_are_counted(
    detection, rehearse, told, tmp_path
):
    content = json.loads((tmp_path / 'coco.json').read_text())
    content['annotations'][3]['bbox'] = [1, 1, 0, 9]
    change(tmp_path, annotations=content['annotations'])
    rehearse(detection)
    lines = [line for line in told if 'left out' in line]
    assert len(lines) == 2  # of training and of validation
    assert 'coco.json' in lines[0] and 'annotation 4' in lines[0]


def test_an_image_that_is_not_there(detection, rehearse, tmp_path):
    (tmp_path / 'img' / '2.jpg').unlink()
    refuses(rehearse, detection, r'not in the folder: once, .*2\.jpg')


def test_another_size_than_annotated(detection, rehearse, tmp_path):
    draw(tmp_path / 'img' / '0.jpg', size=(41, 40))
    refuses(rehearse, detection, 'another width and height than its file')


def test_panoptic_data_is_not_taken_for_objects(detection):
    from mmdet.datasets import CocoDataset, CocoPanopticDataset

    from pelk_mm.engine.rehearsal.annotations import reads_coco

    for kind, expected in ((CocoDataset, True), (CocoPanopticDataset, False)):
        assert reads_coco(kind.__new__(kind)) is expected


# Validation


def test_validation_of_other_classes(detection, rehearse, told):
    detection.val_dataloader.dataset.metainfo.classes = ('dog', 'cat')
    rehearse(detection)
    assert "label 0 is 'cat' in" in warned(told, 'validation: label 0')


def test_images_of_validation_that_are_not_there(
    classification, rehearse, tmp_path
):
    lines = [f'{name}/{i}.jpg {i // 2}' for i, name in enumerate('aabbcc')]
    (tmp_path / 'list.txt').write_text('\n'.join([*lines, 'c/9.jpg 2']))
    classification.val_dataloader.dataset.ann_file = 'list.txt'
    refuses(rehearse, classification, r'val_dataloader: .*there is no .*9\.jp')
