"""Every variant of a model behind one call, and images that all of them take.

A variant is a config with a checkpoint, merged or not, or a file that was
exported from them.
"""

from __future__ import annotations

import json
import os.path as osp
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from zipfile import ZipFile

import torch
from torch import Tensor

from .. import ops  # noqa: F401, packages of torch call its operator
from ..apis.inference import list_images
from ..datasets.images import sort_out
from ..datasets.preprocessor import Preprocessor
from ..utils.config import load_config
from ..utils.errors import LaunchError, need
from ..utils.output import silent
from ..utils.sampling import evenly
from .compare import TOLERANCE
from .networks import check_shape, describe, load_network, random_images

#: Under which files hold a JSON of what they are.
METADATA = 'pelk_mm'


@dataclass(frozen=True, eq=False)
class Variant:
    """One variant of a model, ready to run on the CPU.

    ``run`` returns outputs in the order of ``outputs``, their names.
    ``metadata`` is what it says of itself: ``mean``, ``std`` and ``channels``
    of its images, their ``shape``, whether it is ``dynamic``, its
    ``precision``.
    """

    name: str
    run: Callable[[Tensor], Iterable[Tensor]]
    outputs: Sequence[str]
    metadata: Mapping

    @property
    def tolerance(self) -> float:
        """Which relative difference is rounding in its precision."""
        precision = self.metadata.get('precision', 'fp32')
        return TOLERANCE.get(precision, TOLERANCE['fp32'])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Run ``(N, 3, H, W)``, normalised, float32; outputs by name."""
        try:
            outputs = self.run(images)
        except Exception as error:
            shape = tuple(images.shape)
            text = f'{self.name} does not take images {shape}: {error}'
            raise RuntimeError(text) from error
        return dict(zip(self.outputs, outputs, strict=True))


def load_variant(model: str, checkpoint: str | None = None) -> Variant:
    """Load a config, with its checkpoint, or an ``.onnx`` or ``.pt2`` file.

    Raises LaunchError if config and checkpoint do not go together, OSError if
    there is no such file, and RuntimeError if it cannot be run.
    """
    loaders = {'.onnx': load_onnx, '.pt2': load_package}
    load = loaders.get(osp.splitext(model)[1])
    if load is not None:
        if checkpoint is not None:
            text = f'{model} holds its weights: leave out {checkpoint}'
            raise LaunchError(text)
        return load(model)
    if checkpoint is None:
        raise LaunchError(
            f'{model} is neither an .onnx nor a .pt2 file; a config needs a '
            'checkpoint after it'
        )
    config = load_config(model)
    network = load_network(config, checkpoint)
    name = f'{checkpoint} ({"merged" if network.merged else "not merged"})'
    return Variant(name, network, network.names, describe(config))


def load_onnx(path: str | Path) -> Variant:
    """Load an ONNX file into onnxruntime; raises as load_variant."""
    (onnxruntime,) = need('onnxruntime')
    path = _existing(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    cpu = ['CPUExecutionProvider']
    try:
        session = onnxruntime.InferenceSession(path, options, cpu)
    # Its own classes derive from nothing more telling.
    except Exception as error:
        text = f'onnxruntime cannot run {path}: {error}'
        raise RuntimeError(text) from error
    input = session.get_inputs()[0].name
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> Iterable[Tensor]:
        outputs = session.run(names, {input: images.numpy()})
        return map(torch.from_numpy, outputs)

    properties = session.get_modelmeta().custom_metadata_map
    metadata = json.loads(properties.get(METADATA, '{}'))
    return Variant(path, run, names, metadata)


def load_package(path: str | Path) -> Variant:
    """Load either kind of :mod:`.torch_export`; raises as load_variant."""
    path = _existing(path)
    try:
        with silent('torch.utils.cpp_extension'):
            network, text = _read_package(path)
    except Exception as error:
        text = f'{path} cannot be loaded as a package of torch: {error}'
        raise RuntimeError(text) from error
    if not text:
        raise RuntimeError(
            f'{path} does not name its outputs: it was not made by '
            'tools/deployment/export_torch.py'
        )
    metadata = json.loads(text)
    return Variant(path, network, metadata['names'], metadata)


def _read_package(path: str) -> tuple[Callable, str | None]:
    """What a package computes, and its metadata."""
    with ZipFile(path) as archive:
        files = archive.namelist()
    if any('/aotinductor/' in name for name in files):
        # What torch 2.10's loader needs and does not import; slow, so only
        # for such packages.
        import_module('torch._inductor.codecache')
        network = torch._inductor.aoti_load_package(path)
        return network, network.get_metadata().get(METADATA)
    extra = {METADATA: ''}
    network = torch.export.load(path, extra_files=extra).module()
    return network, extra[METADATA]


def _existing(path: str | Path) -> str:
    if not osp.isfile(path):
        raise FileNotFoundError(f'there is no file {path}')
    return str(path)


@dataclass(frozen=True)
class Images:
    """Images of one shape, read one by one as ``(1, 3, H, W)``.

    ``read`` makes one of each of ``sources``; ``skipped`` says why others are
    not among them.
    """

    shape: tuple[int, int]
    sources: Sequence
    read: Callable[..., Tensor]
    skipped: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.read, self.sources)


def load_images(
    variants: Sequence[Variant],
    folder: str | None = None,
    num: int = 4,
    shape: Sequence[int] | None = None,
) -> Images:
    """Images that all variants take, normalised as they say.

    ``folder`` may be a picture, and None is for random ones; at most ``num``
    are taken, evenly spaced by name. ``shape`` is by default that of the first
    variant that says one, or 224 x 224. A LaunchError says that there are no
    images, or that the variants want different ones.
    """
    fixed = [each for each in variants if 'shape' in each.metadata]
    if shape is None:
        shape = fixed[0].metadata['shape'] if fixed else (224, 224)
    shape = check_shape(shape)
    for variant in fixed:
        own = tuple(variant.metadata['shape'])
        if own != shape and not variant.metadata.get('dynamic'):
            raise LaunchError(
                f'{variant.name} takes images of {own} pixels only, got '
                f'{shape}; export it with --dynamic'
            )
    keys = ('mean', 'std', 'channels')
    known = [
        tuple(variant.metadata[key] for key in keys)
        for variant in variants
        if variant.metadata.keys() >= set(keys)
    ]
    if any(normalisation != known[0] for normalisation in known):
        raise LaunchError(
            'the variants normalise images differently: '
            f'(mean, std, channels) are {known}'
        )
    if folder is None:
        return Images(shape, range(num), partial(random_images, shape, 1))
    paths, skipped = sort_out(evenly(list_images(folder), num))
    if not paths:
        raise LaunchError(f'no image of {folder} can be read: {skipped[0]}')
    read = Preprocessor(shape)
    if known:
        mean, std, channels = known[0]
        read = Preprocessor(shape, mean, std, channels == 'RGB')
    return Images(shape, paths, read, skipped)
