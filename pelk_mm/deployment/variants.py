"""A model in any of its forms, and the images that all of them take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..apis.inference import list_images
from ..datasets.images import sort_out
from ..datasets.preprocessor import Preprocessor
from ..utils.config import load_config
from ..utils.errors import LaunchError
from .networks import check_shape, describe, load_network, random_images
from .runners import OnnxRunner, TorchRunner

#: Files that hold a network, and what runs them.
_RUNNERS = {'.onnx': OnnxRunner, '.pt2': TorchRunner}


@dataclass(eq=False)
class Form:
    """One form of a model.

    Attributes:
        name (str): For people.
        run (Callable): Takes ``(1, 3, H, W)``, returns outputs by name.
        metadata (Mapping): What it says of itself: ``mean``, ``std`` and
            ``channels`` of its images, their ``shape``, whether it is
            ``dynamic``.
    """

    name: str
    run: Callable[[Tensor], dict[str, Tensor]]
    metadata: Mapping = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        return self.run(image)


def load_form(model: str, checkpoint: str | None = None) -> Form:
    """Load a form of a model.

    Args:
        model (str): A config, or a file ending in ``.onnx`` or ``.pt2``.
        checkpoint (str, optional): The weights that go with a config, in
            training form or merged. Default: None.

    Returns:
        Form: Ready to run.

    Raises:
        LaunchError: If config and checkpoint do not go together.
        OSError: If there is no such file.
        RuntimeError: If it cannot be run.
    """
    runner = _RUNNERS.get(Path(model).suffix)
    if runner is not None:
        if checkpoint is not None:
            raise LaunchError(
                f'{model} holds its weights: leave out {checkpoint}'
            )
        loaded = runner(model)
        return Form(model, loaded, loaded.metadata)
    if checkpoint is None:
        raise LaunchError(
            f'{model} is neither an .onnx nor a .pt2 file; a config needs a '
            'checkpoint behind it'
        )
    config = load_config(model)
    network = load_network(config, checkpoint)
    state = 'merged' if network.merged else 'training form'
    return Form(f'{checkpoint} ({state})', network.outputs, describe(config))


class Images:
    """Images of one shape, read one by one.

    Args:
        shape (Sequence[int]): Height and width in pixels.
        num (int): How many.
        paths (Sequence[Path], optional): Where to read them. Default: None,
            noise.
        read (Preprocessor, optional): How to.
        skipped (Sequence[str]): Why others are not among them. Default: ().
    """

    def __init__(
        self,
        shape: Sequence[int],
        num: int,
        paths: Sequence[Path] | None = None,
        read: Preprocessor | None = None,
        skipped: Sequence[str] = (),
    ) -> None:
        self.shape, self.skipped = tuple(shape), tuple(skipped)
        self._num, self._paths, self._read = num, paths, read

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(self._num):
            yield (
                random_images(self.shape, seed=i)
                if self._paths is None
                else self._read(self._paths[i])
            )


def load_images(
    forms: Sequence[Form],
    folder: str | None = None,
    num: int = 4,
    shape: Sequence[int] | None = None,
) -> Images:
    """Images that all forms take.

    Args:
        forms (Sequence[Form]): What they are for.
        folder (str, optional): A picture, or a folder of them. Default: None,
            random images.
        num (int): How many, at most; evenly spaced in the order of their
            names. Default: 4.
        shape (Sequence[int], optional): Height and width in pixels. Default:
            of the first form that says one, or 224 x 224.

    Returns:
        Images: Normalised as the first form that says how wants them.

    Raises:
        LaunchError: If there are no images, or the forms want different ones.
    """
    fixed = {
        form.name: tuple(form.metadata['shape'])
        for form in forms
        if 'shape' in form.metadata
    }
    shape = check_shape(shape or next(iter(fixed.values()), (224, 224)))
    for form in forms:
        own = fixed.get(form.name, shape)
        if own != shape and not form.metadata.get('dynamic'):
            raise LaunchError(
                f'{form.name} takes images of {own} pixels '
                f'only, got {shape}; export it with --dynamic'
            )
    keys = ('mean', 'std', 'channels')
    known = [
        tuple(form.metadata[key] for key in keys)
        for form in forms
        if form.metadata.keys() >= set(keys)
    ]
    if any(normalisation != known[0] for normalisation in known):
        raise LaunchError(
            'the forms normalise images differently: '
            f'(mean, std, channels) are {known}'
        )
    if folder is None:
        return Images(shape, num)
    found = list_images(folder)
    places = np.linspace(0, len(found) - 1, min(num, len(found)))
    paths, skipped = sort_out(
        found[place] for place in places.round().astype(int)
    )
    if not paths:
        raise LaunchError(f'no image of {folder} can be read: {skipped[0]}')
    read = Preprocessor(shape)
    if known:
        mean, std, channels = known[0]
        read = Preprocessor(shape, mean, std, channels == 'RGB')
    return Images(shape, len(paths), paths, read, skipped)
