"""Predictions on pictures, for every task.

The libraries' inferencers do the work. Here they get one interface, and a
picture that cannot be read is skipped.
"""

from __future__ import annotations

import os.path as osp
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.structures import BaseDataElement

from ..datasets.images import find_images, read_image
from ..engine.preflight.checks import check_weights
from ..models.utils import Checkpoints
from ..utils.config import library_of, type_name
from ..utils.errors import LaunchError
from ..utils.files import atomic_path
from .launch import require_checkpoint

#: Length over width up to which a classified picture is drawn as it is.
_LONGEST = 64


@dataclass(frozen=True)
class Prediction:
    """The result of one picture.

    ``rows`` are text in the columns of :attr:`Predictor.columns`, most
    certain first; ``drawn`` is the picture with them; ``error`` says why there
    is none.
    """

    image: Path
    rows: tuple[tuple[str, ...], ...] = ()
    drawn: Path | None = None
    error: str | None = None


class Predictor(ABC):
    """One task's inferencer, by default on a GPU if there is one.

    ``options`` replace :attr:`opacity` and :attr:`score_thr`, unless they are
    None. A LaunchError says that the task does not have one of them.
    """

    #: Heads of a result's columns.
    columns: tuple[str, ...]
    #: Of the colours over a picture, 0 to 1. None where there are none.
    opacity: float | None = None
    #: Least score of what is listed and drawn, 0 to 1. None where all is.
    score_thr: float | None = None

    def __init__(
        self,
        config: Config,
        checkpoint: str,
        device: str | None = None,
        **options: float | None,
    ) -> None:
        for name, value in options.items():
            if value is None:
                continue
            if getattr(self, name) is None:
                kind = type(self).__name__.lower()
                raise LaunchError(
                    f'{name} = {value:g} was given, but a {kind} does not '
                    'use it; leave it out'
                )
            setattr(self, name, value)
        self.inferencer = self._build(config, checkpoint, device)

    @abstractmethod
    def _build(
        self, config: Config, checkpoint: str, device: str | None
    ) -> Any:
        """The library's inferencer."""

    @abstractmethod
    def predict(self, images: list[np.ndarray]) -> list[BaseDataElement]:
        """Data samples of images ``(H, W, 3)``, uint8 BGR."""

    @abstractmethod
    def rows(self, sample: BaseDataElement) -> Iterator[tuple[str, ...]]:
        """What was found, as text."""

    @abstractmethod
    def draw(
        self, image: np.ndarray, sample: BaseDataElement, path: Path
    ) -> None:
        """Draw a sample into an image ``(H, W, 3)``, uint8 RGB."""


class Classifier(Predictor):
    """Top five classes."""

    columns = ('class', 'score')

    def _build(self, config, checkpoint, device):
        from mmpretrain import ImageClassificationInferencer
        from mmpretrain.visualization import UniversalVisualizer

        inferencer = ImageClassificationInferencer(
            config, pretrained=checkpoint, device=device or _best_device()
        )
        if inferencer.classes is None:
            inferencer.classes = _classes(config)
        inferencer.visualizer = UniversalVisualizer()
        return inferencer

    def predict(self, images):
        return self.inferencer(
            images, return_datasamples=True, batch_size=len(images)
        )

    def rows(self, sample):
        scores = sample.pred_score
        top = scores.topk(min(5, len(scores)))
        found = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        for score, label in found:
            yield _name(self.inferencer.classes, label), f'{score:.3f}'

    def draw(self, image, sample, path):
        # The short side is enlarged for the text: of a picture that is one
        # pixel high and thousands wide that would be gigabytes.
        least = -(-max(image.shape[:2]) // _LONGEST)
        pads = [(0, max(0, least - side)) for side in image.shape[:2]]
        image = np.pad(image, [*pads, (0, 0)], constant_values=255)
        self.inferencer.visualizer.visualize_cls(
            image,
            sample,
            classes=self.inferencer.classes,
            # Text is unreadable on smaller pictures.
            resize=max(224, min(image.shape[:2])),
            draw_gt=False,
            out_file=str(path),
        )


class Segmentor(Predictor):
    """Classes by their share of the picture."""

    columns = ('class', 'share of pixels')
    opacity = 0.5

    def _build(self, config, checkpoint, device):
        from mmseg.apis import MMSegInferencer

        inferencer = MMSegInferencer(
            config, checkpoint, device=device or _best_device()
        )
        inferencer.show_progress = False
        return inferencer

    def predict(self, images):
        samples = self.inferencer(
            images, return_datasamples=True, batch_size=len(images)
        )
        return samples if isinstance(samples, list) else [samples]

    def rows(self, sample):
        labels, counts = sample.pred_sem_seg.data.unique(return_counts=True)
        order = counts.argsort(descending=True)
        classes = self.inferencer.model.dataset_meta['classes']
        for i in order.tolist():
            share = float(counts[i]) / float(counts.sum())
            yield _name(classes, int(labels[i])), f'{share:.1%}'

    def draw(self, image, sample, path):
        visualizer = self.inferencer.visualizer
        visualizer.alpha = self.opacity
        visualizer.set_dataset_meta(**self.inferencer.model.dataset_meta)
        visualizer.add_datasample(
            path.stem, image, sample, draw_gt=False, out_file=str(path)
        )


class Detector(Predictor):
    """Objects with a score of at least ``score_thr``."""

    columns = ('class', 'score', 'box (x1 y1 x2 y2)')
    opacity = 0.5
    score_thr = 0.3

    def _build(self, config, checkpoint, device):
        from mmdet.apis import DetInferencer

        device = device or _best_device()
        options = dict(device=device, show_progress=False)
        return DetInferencer(config, checkpoint, **options)

    def predict(self, images):
        options = dict(return_datasamples=True, no_save_vis=True)
        options['batch_size'] = len(images)
        return self.inferencer(images, **options)['predictions']

    def rows(self, sample):
        found = sample.pred_instances
        classes = self.inferencer.model.dataset_meta['classes']
        fields = found.labels, found.scores, found.bboxes.round().int()
        lists = [field.tolist() for field in fields]
        for label, score, box in zip(*lists, strict=True):
            if score >= self.score_thr:
                corners = ' '.join(map(str, box))
                yield _name(classes, label), f'{score:.3f}', corners

    def draw(self, image, sample, path):
        visualizer = self.inferencer.visualizer
        visualizer.alpha = self.opacity
        visualizer.dataset_meta = self.inferencer.model.dataset_meta
        options = dict(draw_gt=False, pred_score_thr=self.score_thr)
        options['out_file'] = str(path)
        visualizer.add_datasample(path.stem, image, sample, **options)


#: By task library.
PREDICTORS: dict[str, type[Predictor]] = dict(
    mmpretrain=Classifier, mmseg=Segmentor, mmdet=Detector
)


def build_predictor(
    config: Config,
    checkpoint: str,
    device: str | None = None,
    **options: float | None,
) -> Predictor:
    """Build the predictor of a config's task, the library of its model.

    ``options`` are those of :class:`Predictor`. Where ``test_dataloader`` is
    None, ``val_dataloader`` says how images are prepared. A LaunchError says
    that neither does, that the task is none of the three, that it does not
    use an option, or that a local checkpoint cannot be read or lacks a weight
    of the model.
    """
    kind = PREDICTORS[library_of(config)]
    checkpoints = Checkpoints()
    if '://' not in checkpoint:
        contents = require_checkpoint(checkpoint, checkpoints)
        check_weights(config, contents, checkpoint)
    _prepare_pipeline(config)
    with checkpoints.shared():
        return kind(config, checkpoint, device, **options)


def _prepare_pipeline(config: Config) -> None:
    """Give the libraries' inferencers the test pipeline that they look for."""
    if config.get('test_dataloader') is None:
        # Of a config that only trains.
        config.test_dataloader = config.get('val_dataloader')
    dataset = (config.test_dataloader or {}).get('dataset') or {}
    if not dataset.get('pipeline'):
        raise LaunchError(
            'the config does not say how images are prepared: '
            'test_dataloader.dataset.pipeline is missing, and so is that of '
            'val_dataloader; add one of them'
        )
    for step in dataset.pipeline:
        # Found by name where it is a name.
        if type_name(step) in ('LoadImageFromFile', 'LoadAnnotations'):
            step.type = type_name(step)


def list_images(source: str | Path) -> list[Path]:
    """The picture, or those of a folder; a LaunchError if there are none."""
    source = Path(source)
    if not source.exists():
        raise LaunchError(f'there is no file or folder {source}')
    images = [source] if source.is_file() else list(find_images(source))
    if not images:
        raise LaunchError(f'{source} and its subfolders hold no image')
    return images


def predict_files(
    predictor: Predictor,
    images: Sequence[Path],
    out: str | Path,
    batch_size: int = 1,
) -> Iterator[Prediction]:
    """Predict pictures, ``batch_size`` at once, and draw results into ``out``.

    Pictures that fail are skipped: their prediction has an error.
    """
    names = _output_names(images)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        loaded = [_image_or_reason(path) for path in batch]
        whole = [image for image in loaded if not isinstance(image, str)]
        samples = iter(_predict(predictor, whole))
        for path, image in zip(batch, loaded, strict=True):
            if isinstance(image, str):
                yield Prediction(path, error=image)
                continue
            sample = next(samples)
            if isinstance(sample, str):
                yield Prediction(path, error=f'{path}: {sample}')
                continue
            drawn = Path(out, names[path])
            try:
                with atomic_path(drawn) as scratch:
                    predictor.draw(image[..., ::-1].copy(), sample, scratch)
            except OSError:
                raise  # of the disk, not of the picture
            except Exception as error:
                why = f'cannot be drawn into: {_one_line(error)}'
                yield Prediction(path, error=f'{path}: {why}')
                continue
            yield Prediction(path, tuple(predictor.rows(sample)), drawn)


def _image_or_reason(path: Path) -> np.ndarray | str:
    """The image, ``(H, W, 3)`` uint8 BGR, or why there is none."""
    try:
        return read_image(path)
    except ValueError as error:
        return str(error)


def _predict(
    predictor: Predictor, images: list[np.ndarray]
) -> list[BaseDataElement | str]:
    """Data samples; where the network fails on one, why."""
    if not images:
        return []
    try:
        return predictor.predict(images)
    except Exception as error:
        if len(images) == 1:
            height, width = images[0].shape[:2]
            what = f'a picture of {width} x {height} pixels fails in the '
            return [f'{what}pipeline or the network: {_one_line(error)}']
    # One of them may be at fault, or their sizes do not go together.
    return [_predict(predictor, [image])[0] for image in images]


def _one_line(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


def _output_names(images: Sequence[Path]) -> dict[Path, Path]:
    """Where each picture is drawn to; no two at the same place."""
    root = osp.commonpath([path.absolute().parent for path in images])
    names: dict[Path, Path] = {}
    for path in images:
        name = Path(osp.relpath(path.absolute(), root))
        short = name.with_suffix('.png')
        taken = short in names.values()
        names[path] = name.with_name(f'{name.name}.png') if taken else short
    return names


def _name(classes: Sequence[str] | None, label: int) -> str:
    if classes is None or label >= len(classes):
        return f'class {label}'
    return classes[label]


def _classes(config: Config) -> Sequence[str] | None:
    dataset = (config.get('test_dataloader') or {}).get('dataset') or {}
    return (dataset.get('metainfo') or {}).get('classes')


def _best_device() -> str:
    import torch

    return 'cuda' if torch.cuda.is_available() else 'cpu'
