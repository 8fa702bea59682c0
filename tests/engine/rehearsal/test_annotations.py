"""Every mistake is counted as what the task libraries make of it."""

import json

import pytest
from PIL import Image

from pelk_mm.engine.rehearsal.annotations import (
    Findings,
    check_coco,
    read_coco,
)

SQUARE = [2, 2, 12, 2, 12, 12, 2, 12]


def good() -> dict:
    return dict(
        images=[
            dict(id=1, file_name='1.jpg', width=40, height=30),
            dict(id=2, file_name='2.jpg', width=40, height=30),
        ],
        categories=[dict(id=7, name='a'), dict(id=3, name='b')],
        annotations=[
            dict(
                id=1,
                image_id=1,
                category_id=7,
                bbox=[2, 2, 10, 10],
                area=100,
                segmentation=[SQUARE],
                iscrowd=0,
            ),
            dict(
                id=2,
                image_id=2,
                category_id=3,
                bbox=[0, 0, 40, 30],
                area=1200,
                segmentation=dict(counts=[0, 1200], size=[30, 40]),
                iscrowd=1,
            ),
        ],
    )


def change(where: str, **fields) -> dict:
    """The good ones with fields of the first item changed; ... removes."""
    content = good()
    item = content[where][0]
    item.update(fields)
    for key in [key for key, value in item.items() if value is ...]:
        del item[key]
    return content


def findings(content: dict, **kwargs) -> Findings:
    return check_coco(content, ('a', 'b'), masks=True, **kwargs)


def test_nothing_wrong():
    found = findings(good())
    assert not found.errors() and not found.warnings()


ERRORS = [
    ('images', dict(id=...), 'an image has no id'),
    ('images', dict(file_name=...), 'an image has no file_name'),
    ('images', dict(width=...), 'an image has no width'),
    ('images', dict(height=0), 'not a positive number'),
    ('images', dict(width='40'), 'not a positive number'),
    ('images', dict(width=float('nan')), 'not a positive number'),
    ('images', dict(id=[1]), 'id or file_name of a wrong type'),
    ('images', dict(id=2), 'two images have the same id'),
    ('categories', dict(id=...), 'a category has no id'),
    ('categories', dict(id=3), 'two categories have the same id'),
    ('annotations', dict(id=...), 'an annotation has no id'),
    ('annotations', dict(image_id=...), 'an annotation has no image_id'),
    ('annotations', dict(category_id=None), 'has no category_id'),
    ('annotations', dict(bbox=...), 'an annotation has no bbox'),
    ('annotations', dict(area=...), 'an annotation has no area'),
    ('annotations', dict(id=2), 'two annotations have the same id'),
    ('annotations', dict(image_id={}), 'id of a wrong type'),
    ('annotations', dict(bbox=[1, 2, 3]), 'not four numbers'),
    ('annotations', dict(bbox=[1, 2, 3, 'x']), 'not four numbers'),
    ('annotations', dict(bbox=[1, 2, 3, float('inf')]), 'not four numbers'),
    ('annotations', dict(bbox='1234'), 'not four numbers'),
    ('annotations', dict(segmentation=[]), 'has no segmentation'),
    ('annotations', dict(segmentation='x'), 'neither polygons nor run'),
    ('annotations', dict(segmentation=[1, 2]), 'neither polygons nor run'),
    (
        'annotations',
        dict(segmentation=dict(counts='x', size=[40, 30])),
        'run lengths has another size',
    ),
]
WARNINGS = [
    ('annotations', dict(bbox=[2, 2, 0, 10]), 'less than a pixel'),
    ('annotations', dict(bbox=[2, 2, -5, 10]), 'less than a pixel'),
    ('annotations', dict(area=0), 'less than a pixel, or no area'),
    ('annotations', dict(bbox=[50, 2, 10, 10]), 'box outside the image'),
    ('annotations', dict(bbox=[-20, 2, 10, 10]), 'box outside the image'),
    ('annotations', dict(image_id=99), 'images that are not listed'),
    ('annotations', dict(category_id=99), 'categories that are not used'),
    ('annotations', dict(segmentation=[[1, 2, 3, 4]]), 'less than three'),
    ('annotations', dict(segmentation=[[*SQUARE, 1]]), 'half a point'),
    (
        'annotations',
        dict(segmentation=[[0, 0, 99, 0, 9, 9]]),
        'reach outside the image',
    ),
    ('annotations', dict(segmentation=dict(counts=[1])), 'without counts'),
]


@pytest.mark.parametrize('where, fields, message', ERRORS)
def test_errors(where, fields, message):
    found = findings(change(where, **fields))
    line, *_ = found.errors()
    assert message in line
    assert 'once, ' in line


@pytest.mark.parametrize('where, fields, message', WARNINGS)
def test_warnings(where, fields, message):
    found = findings(change(where, **fields))
    assert not found.errors()
    (line,) = found.warnings()
    assert message in line and 'once, annotation 1' in line


@pytest.mark.parametrize('where, fields, message', WARNINGS[:7])
def test_what_is_warned_of_is_what_mmdetection_leaves_out(
    where, fields, message, tmp_path
):
    from mmdet.datasets import CocoDataset

    for content, kept in ((good(), 1), (change(where, **fields), 0)):
        path = tmp_path / 'coco.json'
        path.write_text(json.dumps(content))
        dataset = CocoDataset(
            ann_file=str(path),
            metainfo=dict(classes=('a', 'b')),
            data_prefix=dict(img=''),
            pipeline=[],
        )
        # The crowd of the second image is always there.
        assert len(dataset) == 2
        assert len(dataset.get_data_info(0)['instances']) == kept


@pytest.mark.parametrize(
    'where, fields, message',
    [
        case
        for case in ERRORS
        if ... in case[1].values() and case[0] != 'categories'
    ]
    + [
        ('annotations', dict(bbox=[1, 2, 3]), ''),
        ('annotations', dict(bbox=[1, 2, 3, 'x']), ''),
        ('images', dict(width='40'), ''),
    ],
)
def test_what_is_an_error_ends_mmdetection(where, fields, message, tmp_path):
    from mmdet.datasets import CocoDataset

    path = tmp_path / 'coco.json'
    path.write_text(json.dumps(change(where, **fields)))
    with pytest.raises((KeyError, TypeError, ValueError)):
        CocoDataset(
            ann_file=str(path),
            metainfo=dict(classes=('a', 'b')),
            data_prefix=dict(img=''),
            pipeline=[],
        )


def test_counts_and_the_first():
    content = good()
    content['annotations'] += [
        dict(content['annotations'][0], id=i, bbox=[0, 0, 0, 0])
        for i in range(10, 15)
    ]
    (line,) = findings(content).warnings()
    assert '5 times, first annotation 10' in line


def test_all_left_out_is_an_error():
    content = good()
    for annotation in content['annotations']:
        annotation['category_id'] = 99
    (line,) = findings(content).errors()
    assert 'no annotation is left' in line
    # None at all are a data set for a test, say.
    assert not findings(dict(good(), annotations=[])).errors()


def test_masks_are_looked_at_only_where_they_are_learned():
    content = change('annotations', segmentation=...)
    assert not check_coco(content, ('a', 'b')).errors()
    assert check_coco(content, ('a', 'b'), masks=True).errors()


@pytest.mark.parametrize('key', ['images', 'annotations', 'categories'])
@pytest.mark.parametrize('value', [{}, None, 'x', [1], [[]]])
def test_lists_of_something_else(key, value):
    (line,) = findings(dict(good(), **{key: value})).errors()
    assert f'{key} is not a list of objects' in line


def test_order_of_the_categories():
    content = good()
    content['categories'].reverse()
    (line,) = findings(content).warnings()
    assert 'another order' in line and 'b, a instead of a, b' in line


def save(path, size, orientation=None):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x112] = orientation
    Image.new('RGB', size).save(path, exif=exif)


def test_files_and_their_sizes(tmp_path):
    save(tmp_path / '1.jpg', (40, 30))
    found = findings(good(), folder=str(tmp_path))
    (line,) = found.errors()
    assert 'not in the folder: once' in line and '2.jpg' in line
    save(tmp_path / '2.jpg', (40, 31))
    (line,) = findings(good(), folder=str(tmp_path)).errors()
    assert '(40, 31), the annotations say (40, 30)' in line
    # What is on disk as annotated is turned where it is loaded.
    save(tmp_path / '2.jpg', (40, 30), orientation=6)
    (line,) = findings(good(), folder=str(tmp_path)).errors()
    assert 'EXIF' in line
    save(tmp_path / '2.jpg', (30, 40), orientation=6)
    assert not findings(good(), folder=str(tmp_path)).errors()


@pytest.mark.parametrize(
    'content, message',
    [
        ('not json', 'it is not JSON'),
        ('[]', 'it has no annotations, categories, images'),
        ('{"images": [], "annotations": []}', 'it has no categories'),
        (
            '{"images": [{}], "annotations": [], '
            '"categories": [{"name": "a"}]}',
            'no category b of the classes',
        ),
    ],
)
def test_files_of_something_else(content, message, tmp_path):
    (tmp_path / 'coco.json').write_text(content)
    found = read_coco(str(tmp_path / 'coco.json'), ('a', 'b'))
    assert any(message in line for line in found.errors())


def test_a_file_that_is_not_there():
    assert read_coco('s3://bucket/coco.json') is None
