"""The task libraries' own configs, made small, with a PeLK for their ResNet.

Data is drawn, and stands for whatever a config loads; its pipelines stay, with
small scales. Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.fileio import dump
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from pelk_mm.utils.config import load_config
from pelk_mm.utils.errors import LaunchError

LIBRARIES = ('mmpretrain', 'mmseg', 'mmdet')
CHANNELS = (8, 16, 24, 32)
#: Channels of a ResNet's stages, and of the small ones'.
_LARGE, _SMALL = (256, 512, 1024, 2048), (64, 128, 256, 512)
_RESNETS = ('ResNet', 'ResNetV1c', 'ResNetV1d')
#: Longest side in pixels, and of a crop.
_SIDE, _CROP = 96, 64
_HEIGHT, _WIDTH = 96, 128


def families(library: str) -> list[str]:
    """Folders of a library's configs, none where it is not installed."""
    if find_spec(library) is None:
        return []
    root = _configs(library)
    found = [path.name for path in sorted(root.iterdir()) if path.is_dir()]
    return [name for name in found if name != '_base_']


def _configs(library: str) -> Path:
    return Path(find_spec(library).origin).parent / '.mim' / 'configs'


def configs(library: str, family: str) -> Iterator[tuple[str, Config]]:
    """Configs that train a network whose ResNet can be exchanged, with PeLK.

    What takes the backbone's maps is left with the channels of the ResNet.
    """
    root = _configs(library)
    for file in sorted((root / family).glob('*.py')):
        name = str(file.relative_to(root))
        try:
            config = load_config(f'{library}::{name}')
        except LaunchError:
            # Half a config, or one of a package that is not there.
            continue
        if config.get('train_dataloader') and _exchange(config.model, library):
            config.model.pop('pretrained', None)
            yield name, config


def backbones(node: Any) -> Iterator[dict]:
    """Configs of the PeLKs below a node."""
    if isinstance(node, Mapping) and node.get('type') == 'pelk_mm.PeLK':
        yield node
    for _, value in _items(node):
        yield from backbones(value)


def _exchange(node: Any, library: str) -> int:
    """Exchange every ResNet below a node; how many."""
    count = 0
    for key, value in _items(node):
        kind = value.get('type') if isinstance(value, Mapping) else None
        if str(kind).split('.')[-1] not in _RESNETS or key == 'rfp_backbone':
            count += _exchange(value, library)
        elif new := _pelk(value, library):
            node[key] = new
            count += 1
    return count


def _items(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, Mapping):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, (list, tuple)) else []


def _pelk(resnet: Mapping, library: str) -> dict | None:
    """A PeLK of as many stages; None for a ResNet that is cut short."""
    last = (3,) if library == 'mmpretrain' else (0, 1, 2, 3)
    indices = resnet.get('out_indices', last)
    most = indices if isinstance(indices, int) else max(indices)
    if resnet.get('num_stages', 4) != 4 or most > 3:
        return None
    return dict(
        type='pelk_mm.PeLK',
        out_indices=indices,
        gap_before_final_norm=False,
        arch=dict(
            depths=(1, 1, 1, 1), kernel_sizes=(13, 9, 7, 5), channels=CHANNELS
        ),
    )


def set_channels(model: Mapping) -> None:
    """Give what takes the backbone's maps its channels.

    That is the first neck or, where there is none, the heads.
    """
    for part in _takers(model):
        given = {key: part[key] for key in _CHANNELS if key in part}
        # 1024 and 2048 are those of a ResNet of bottlenecks.
        large = any(n in str(given.values()) for n in ('1024', '2048'))
        new = dict(zip(_LARGE if large else _SMALL, CHANNELS, strict=True))
        for key, value in given.items():
            part[key] = _shifted(value, new)


_CHANNELS = ('in_channels', 'c1_in_channels')


def _shifted(value: Any, new: Mapping[int, int]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_shifted(v, new) for v in value)
    return new.get(value, value)


def _takers(model: Mapping) -> list[Any]:
    neck = model.get('neck')
    first = neck[0] if isinstance(neck, list) else neck
    if isinstance(first, Mapping) and 'in_channels' in first:
        return [first, model.get('teacher_neck') or {}]
    found = []
    for name in ('decode_head', 'auxiliary_head', 'head', 'panoptic_head'):
        head = model.get(name)
        for one in head if isinstance(head, list) else [head]:
            if isinstance(one, Mapping):
                found += [one, one.get('kernel_generate_head') or {}]
    return found


def shrink(config: Config, data: DrawnData, work_dir: Path) -> Config:
    """Let a config train on two drawn pictures, on one CPU, for a moment."""
    init_default_scope(config.default_scope)
    loader = config.train_dataloader
    loader.num_workers, loader.persistent_workers = 0, False
    loader.pop('prefetch_factor', None)
    loader.batch_size = min(loader.batch_size, 2)
    if 'source_ratio' in loader.get('sampler', {}):
        # Labels for one of two pictures.
        loader.sampler.update(batch_size=2, source_ratio=[1, 1])
    data.give(loader.dataset)
    for key in ('train_dataloader', 'model', 'data_preprocessor'):
        _make_small(config.get(key))
    epochs = 'max_epochs' in config.train_cfg
    length = dict(max_epochs=1) if epochs else dict(max_iters=1)
    config.train_cfg = dict(by_epoch=epochs, **length)
    for split in ('val', 'test'):
        for key in ('cfg', 'dataloader', 'evaluator'):
            config[f'{split}_{key}'] = None
    config.param_scheduler = config.load_from = config.visualizer = None
    config.default_hooks = dict(
        checkpoint=None, logger=dict(type='LoggerHook', interval=1)
    )
    wrapper = config.optim_wrapper
    if 'Amp' in wrapper.get('type', ''):
        wrapper.type = 'OptimWrapper'
        wrapper.pop('loss_scale', None)
        wrapper.pop('dtype', None)
    config.work_dir = str(work_dir)
    config.experiment_name = work_dir.name
    config.randomness = dict(seed=0)
    return config


#: Fields of transformations and preprocessors that are sizes in pixels.
_SIZES = dict.fromkeys(('scale', 'scales', 'img_scale'), _SIDE)
_SIZES |= dict.fromkeys(('crop_size', 'size', 'img_size'), _CROP)
#: Wide layers behind the pooled features, where most weights are.
_WIDE = dict.fromkeys(('hid_channels', 'out_channels', 'in_channels'), 8192)
_WIDE['fc_out_channels'] = 1024
_NARROW = 64
#: What is sampled and proposed, and rounds of the data.
_COUNTS = dict(num=32, num_queries=60, num_proposals=60, num_points=1024)
_COUNTS |= dict(nms_pre=200, max_per_img=100, times=1)


def _make_small(node: Any) -> None:
    """Small pictures; norms that work on one CPU; teachers that are new."""
    for key, value in _items(node):
        if key in _SIZES:
            node[key] = _at_most(value, _SIZES[key])
        elif value in ('SyncBN', 'MMSyncBN') and key == 'type':
            node[key] = 'BN'
        elif key in _WIDE and value == _WIDE[key]:
            node[key] = _NARROW
        elif key == 'num_layers' and value in (6, 9):
            node[key] = 2  # of a transformer
        elif key in _COUNTS and isinstance(value, int):
            node[key] = min(value, _COUNTS[key])
        elif key == 'teacher_ckpt' or (
            key == 'init_cfg' and 'checkpoint' in str(value)
        ):
            node[key] = None
        else:
            _make_small(value)


def _at_most(value: Any, most: int) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_at_most(v, most) for v in value)
    return min(value, most) if isinstance(value, int) else value


class DrawnData:
    """Two pictures with objects, in the formats that the libraries read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        numbers = np.random.default_rng(0)
        noise = numbers.integers(0, 256, (2, _HEIGHT, _WIDTH, 3), np.uint8)
        # Corner, size, of the objects of each picture.
        self.boxes = [(8, 8, 40, 32), (60, 20, 48, 40), (24, 56, 56, 36)]
        for i, picture in enumerate(noise):
            for n, (x, y, width, height) in enumerate(self.boxes):
                picture[y : y + height, x : x + width] //= n + 2
            self._save(picture, f'img/{i}.png')
        areas = np.zeros((_HEIGHT, _WIDTH), np.uint8)
        for n, (x, y, width, height) in enumerate(self.boxes):
            areas[y : y + height, x : x + width] = n + 1
        segments = np.stack([areas + 1, *[np.zeros_like(areas)] * 2], -1)
        for i in range(2):
            self._save(areas, f'seg/{i}.png')
            self._save(segments, f'panoptic/{i}.png')
        dump(self._proposals(), folder / 'proposals.pkl')
        lines = [f'{i % 2}.png {i}\n' for i in range(8)]
        (folder / 'persons.txt').write_text(''.join(lines))
        (folder / 'labels.txt').write_text(''.join(lines[:2]))
        labels = [
            dict(img_path=f'{i}.png', gt_label=[i, i + 2]) for i in range(2)
        ]
        self._write('labels.json', dict(metainfo={}, data_list=labels))

    def _save(self, picture: np.ndarray, name: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)

    def _write(self, name: str, content: dict) -> str:
        (self.folder / name).write_text(json.dumps(content))
        return name

    def _proposals(self) -> dict:
        corners = np.array(
            [(x, y, x + w, y + h) for x, y, w, h in self.boxes], np.float32
        )
        scores = np.ones(len(corners), np.float32)
        found = dict(bboxes=corners, scores=scores)
        return {f'img/{i}.png': found for i in range(2)}

    def give(self, node: Any) -> None:
        """Exchange the data of every data set below a node."""
        if not isinstance(node, Mapping):
            return
        if 'pipeline' in node and 'dataset' not in node:
            self._exchange(node)
        for inner in [node.get('dataset'), *node.get('datasets', ())]:
            self.give(inner)

    def _exchange(self, node: Any) -> None:
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(node['type'])
        bases = [base.__name__ for base in kind.__mro__]
        if kind.__name__.startswith('DSDL'):
            return  # dsdl is not installed
        for key in ('data_prefix', 'ann_file', 'split', 'ann_subdir'):
            node.pop(key, None)
        node['data_root'] = f'{self.folder}{os.sep}'
        if kind.__module__.startswith('mmpretrain'):
            self._give_labels(node, kind)
        elif 'BaseSegDataset' in bases:
            node['data_prefix'] = dict(img_path='img', seg_map_path='seg')
            node['img_suffix'] = node['seg_map_suffix'] = '.png'
        elif 'ReIDDataset' in bases:
            node['data_prefix'] = dict(img_path='img')
            node['ann_file'] = 'persons.txt'
        else:
            self._give_objects(node, kind, bases)

    def _give_labels(self, node: Any, kind: type) -> None:
        if kind.__name__ == 'VOC':
            classes = kind.METAINFO['classes']
            node.update(
                type='MultiLabelDataset',
                data_prefix='img',
                ann_file='labels.json',
                metainfo=dict(classes=classes),
            )
        else:
            if kind.__name__ != 'ImageNet':
                node['type'] = 'CustomDataset'
            node.update(data_prefix='img', ann_file='labels.txt')

    def _give_objects(self, node: Any, kind: type, bases: list[str]) -> None:
        if 'dataset_version' in node:
            kind.set_dataset_classes(node['dataset_version'])
        metainfo = node.get('metainfo') or kind.METAINFO
        # Some have them in a file.
        count = 13204 if kind.__name__ == 'V3DetDataset' else 500
        numbered = tuple(f'class {i}' for i in range(count))
        classes = metainfo.get('classes') or numbered
        if 'CocoPanopticDataset' in bases:
            node['data_prefix'] = dict(img='img/', seg='panoptic/')
            node['ann_file'] = self._coco(classes, 80)
            return
        node['ann_file'] = self._coco(classes)
        if 'BaseVideoDataset' in bases:
            node['data_prefix'] = dict(img_path='img')
            return
        if kind.__name__ in _OTHER_FORMATS or 'CocoDataset' not in bases:
            for key in set(node) - _OF_COCO:
                del node[key]
            node.update(type='CocoDataset', metainfo=dict(classes=classes))
        node['data_prefix'] = dict(img='img/', seg='seg/')
        if 'proposal_file' in node:
            node['proposal_file'] = 'proposals.pkl'

    def _coco(self, classes: tuple[str, ...], things: int = 0) -> str:
        """Annotations, panoptic where the first classes are things."""
        kind = 'panoptic' if things else 'objects'
        images = [
            dict(
                id=i + 1,
                file_name=f'{i}.png',
                width=_WIDTH,
                height=_HEIGHT,
                video_id=1,
                frame_id=i,
            )
            for i in range(2)
        ]
        categories = [
            dict(id=i + 1, name=name, isthing=int(i < things))
            for i, name in enumerate(classes)
        ]
        content = dict(
            images=images,
            categories=categories,
            videos=[dict(id=1, name='video', length=2)],
            annotations=self._segments(things)
            if things
            else self._objects(len(classes)),
        )
        return self._write(f'{kind}_{len(classes)}.json', content)

    def _objects(self, classes: int) -> list[dict]:
        found = []
        for i in range(2):
            for n, (x, y, w, h) in enumerate(self.boxes):
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                found.append(
                    dict(
                        id=len(found) + 1,
                        image_id=i + 1,
                        video_id=1,
                        instance_id=n + 1,
                        category_id=n % classes + 1,
                        bbox=[x, y, w, h],
                        area=w * h,
                        iscrowd=0,
                        segmentation=[corners],
                        visibility=1.0,
                        mot_conf=1.0,
                    )
                )
        return found

    def _segments(self, things: int) -> list[dict]:
        objects = self._objects(things)
        found = []
        for i in range(2):
            inside = [
                dict(
                    id=n + 2,
                    category_id=n + 1,
                    bbox=one['bbox'],
                    area=one['area'],
                    iscrowd=0,
                )
                for n, one in enumerate(objects[:3])
            ]
            whole = dict(
                id=1,
                category_id=things + 1,
                bbox=[0, 0, _WIDTH, _HEIGHT],
                area=_WIDTH * _HEIGHT // 2,
                iscrowd=0,
            )
            found.append(
                dict(
                    image_id=i + 1,
                    file_name=f'{i}.png',
                    segments_info=[whole, *inside],
                )
            )
        return found


#: Sets of which only the classes are taken: another format, or one that needs
#: a package of its own.
_OTHER_FORMATS = ('LVISV1Dataset', 'LVISV05Dataset', 'V3DetDataset')
_OF_COCO = {'type', 'data_root', 'ann_file', 'pipeline', 'filter_cfg'}
