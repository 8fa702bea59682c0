"""What options of a test become: augmentation, drawn pictures, metrics."""

from __future__ import annotations

import os.path as osp
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from ..datasets.images import read_image
from ..utils.config import library_of, type_name
from ..utils.errors import LaunchError
from ..utils.files import atomic_path, check_writable

#: By task library: the model of a test-time augmentation that is not in the
#: config, as in the library's own tools.
_TTA_MODELS = dict(
    mmseg=dict(type='mmseg.SegTTAModel'),
    mmdet=dict(
        # Without a scope: it is in mmengine's registry, not in mmdet's.
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    mmpretrain=dict(type='mmpretrain.AverageClsScoreTTA'),
)


def use_tta(config: Config) -> None:
    """Test with the config's augmentation, or with the picture mirrored."""
    library = library_of(config)
    dataset = config.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    pipeline = config.get('tta_pipeline')
    if pipeline is None:
        *steps, pack = dataset.pipeline
        keys = ('flip', 'flip_direction')
        if library != 'mmpretrain' and 'meta_keys' in pack:
            pack = dict(pack, meta_keys=(*pack['meta_keys'], *keys))
        # Annotations are taken from the first, which is not mirrored.
        flips = [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)]
        augment = dict(type='TestTimeAug', transforms=[flips, [pack]])
        pipeline = [*steps, augment]
    model = config.get('tta_model') or _TTA_MODELS[library]
    parts = config.model.get('roi_head') or config.model
    if type_name(model) == 'DetTTAModel' and parts.get('mask_head'):
        raise LaunchError(
            "--tta: mmdetection's DetTTAModel merges boxes and no masks, and "
            'this model has a mask_head; test it without --tta'
        )
    dataset.pipeline = pipeline
    config.model = dict(model, module=config.model)


#: By task library, its visualizer.
_VISUALIZERS = dict(
    mmseg='SegLocalVisualizer',
    mmdet='DetLocalVisualizer',
    mmpretrain='UniversalVisualizer',
)


def draw_to(config: Config, folder: str) -> None:
    """Have what a test predicts drawn into a folder."""
    library = library_of(config)
    require_writable(folder, 'show-dir')
    hook = dict(type='DrawnTestHook', library=library, folder=folder)
    config.custom_hooks = [*(config.get('custom_hooks') or ()), hook]
    if config.get('visualizer') is None:
        kind = f'{library}.{_VISUALIZERS[library]}'
        config.visualizer = dict(type=kind, name='visualizer')


def require_writable(folder: str, option: str) -> None:
    """A LaunchError, now and not at the end, where nothing can be saved."""
    try:
        check_writable(folder)
    except OSError as error:
        raise LaunchError(
            f'cannot write to the folder {folder}: {error.strerror}; choose '
            f'another one with --{option}'
        ) from error


@HOOKS.register_module()
class DrawnTestHook(Hook):
    """Draws tested pictures, and annotations, as ``folder/NAME.png``.

    The libraries' own hooks name files by step and time. Subfolders are those
    of the data set.
    """

    def __init__(self, library: str, folder: str) -> None:
        self._draw = {'mmpretrain': _draw_class}.get(library, _draw_sample)
        self.folder = folder
        self._root = ''

    def before_test(self, runner: Runner) -> None:
        """Find the folder that all pictures are in."""
        folders = {osp.dirname(p) for p in _paths(runner.test_loop.dataloader)}
        self._root = osp.commonpath(folders) if folders else ''

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Draw a batch."""
        for sample in outputs or ():
            path = sample.get('img_path')
            if path is None:
                runner.logger.warning('--show-dir: samples have no img_path')
                continue
            name = osp.relpath(path, self._root) if self._root else path
            drawn = Path(self.folder, name).with_suffix('.png')
            image = read_image(path)[..., ::-1].copy()
            with atomic_path(drawn) as scratch:
                self._draw(runner.visualizer, image, sample, str(scratch))


def _paths(loader: Any) -> Iterator[str]:
    infos = map(loader.dataset.get_data_info, range(len(loader.dataset)))
    return (info['img_path'] for info in infos if 'img_path' in info)


def _draw_class(
    visualizer: Visualizer, image: np.ndarray, sample: Any, path: str
) -> None:
    # On smaller pictures the text cannot be read.
    size = max(224, min(image.shape[:2]))
    visualizer.visualize_cls(image, sample, resize=size, out_file=path)


def _draw_sample(
    visualizer: Visualizer, image: np.ndarray, sample: Any, path: str
) -> None:
    visualizer.add_datasample('', image, sample.cpu(), out_file=path)


#: Metrics from 0 to 100: mmpretrain's, and those of mmsegmentation.
_PER_CENT = re.compile(
    r'accuracy/.+|(single|multi)-label/(precision|recall|f1-score|mAP).*|'
    r'aAcc|m(IoU|Acc|Dice|Fscore|Precision|Recall)'
)
#: From 0 to 1, or -1 where there was nothing to find: mmdetection's.
_SHARE = re.compile(r'.*(mAP|AP50|AR@).*')


def with_units(metrics: Mapping[str, Any]) -> Iterator[str]:
    """A line for each metric, rounded, in per cent where it is a share."""
    for name, value in metrics.items():
        if not isinstance(value, (float, np.floating)):
            yield f'{name}: {value}'
        elif _PER_CENT.fullmatch(name):
            yield f'{name}: {value:.2f} %'
        elif not _SHARE.fullmatch(name):
            yield f'{name}: {value:.4f}'
        elif value < 0:
            yield f'{name}: no such objects'
        else:
            yield f'{name}: {100 * value:.2f} %'
