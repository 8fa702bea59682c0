"""A model of any task as a function of its images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from torch import Tensor, nn

from ..apis.launch import require_checkpoint
from ..datasets.preprocessor import Preprocessor
from ..engine.preflight.checks import check_weights
from ..models import PeLK
from ..models.utils import weights_of
from ..utils.config import build_model, library_of
from ..utils.errors import LaunchError

#: Pixels that one position of the last map stands for.
STRIDE = 32


class Network(nn.Module):
    """Normalised images ``(N, 3, H, W)`` in, a tuple of named tensors out.

    What needs more than tensors (resizing and normalising before, proposals
    and suppression of overlaps after) stays outside.
    """

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        self.model = model
        self.names: tuple[str, ...] = ()

    @property
    def merged(self) -> bool:
        """Whether every PeLK in it is; true of other networks."""
        return all(backbone.deploy for backbone in self.backbones())

    def backbones(self) -> list[PeLK]:
        return [part for part in self.modules() if isinstance(part, PeLK)]

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self(images), strict=True))

    def merge(self) -> None:
        """Merge every PeLK in it, see :meth:`PeLK.switch_to_deploy`."""
        for backbone in self.backbones():
            backbone.switch_to_deploy()


class ClassifierNetwork(Network):
    """The head's ``logits`` ``(N, classes)``, before any softmax."""

    def __init__(self, model: BaseModel) -> None:
        super().__init__(model)
        if not getattr(model, 'with_head', False):
            kind = type(model).__name__
            raise LaunchError(f'{kind} has no head to give logits')
        self.names = ('logits',)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (self.model.head(self.model.extract_feat(image)),)


class SegmentorNetwork(Network):
    """``logits`` ``(N, classes, H, W)`` of whole images, at their size."""

    def __init__(self, model: BaseModel) -> None:
        super().__init__(model)
        if isinstance(model.decode_head, nn.ModuleList):
            raise LaunchError(
                f'{type(model).__name__} has several decode heads, of '
                'which the later ones take more than feature maps; expected '
                'a single one'
            )
        self.names = ('logits',)
        self.model = _parts(model, 'backbone', 'neck', 'decode_head')

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        head = self.model.decode_head
        logits = head(self.model.neck(self.model.backbone(image)))
        how = dict(mode='bilinear', align_corners=head.align_corners)
        return (F.interpolate(logits, image.shape[2:], **how),)


class DetectorNetwork(Network):
    """The maps behind backbone and neck, ``level_0`` the finest one."""

    def __init__(self, model: BaseModel) -> None:
        super().__init__(model)
        self.model = _parts(model, 'backbone', 'neck')
        # Necks do not all tell how many levels they give.
        self.eval()
        with torch.no_grad():
            levels = self(torch.zeros(1, 3, 2 * STRIDE, 2 * STRIDE))
        self.names = tuple(f'level_{i}' for i in range(len(levels)))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.neck(self.model.backbone(image)))


def _parts(model: BaseModel, *names: str) -> nn.Module:
    """Some parts of a model, without those that only training uses."""
    parts = nn.Module()
    for name in names:
        parts.add_module(name, getattr(model, name, None) or nn.Identity())
    return parts


#: By task library.
_NETWORKS: dict[str, type[Network]] = dict(
    mmpretrain=ClassifierNetwork, mmseg=SegmentorNetwork, mmdet=DetectorNetwork
)


def load_model(config: Config, checkpoint: Mapping, name: str) -> BaseModel:
    """Build the model of a config with the weights of a checkpoint.

    The checkpoint is merged or not, as the config describes; an error calls it
    ``name``, and is a LaunchError if it does not hold the model's weights. The
    model is in eval mode, without gradients, on the CPU.
    """
    check_weights(config, checkpoint, name)
    model = build_model(config)
    items = weights_of(checkpoint, name).items()
    weights = {key.removeprefix('module.'): value for key, value in items}
    # What check_weights lets pass is the counter of a BatchNorm, which only
    # training reads, and what other models have besides.
    model.load_state_dict(weights, strict=False)
    model.requires_grad_(False)
    model.eval()
    return revert_sync_batchnorm(model)


def make_network(config: Config, model: BaseModel) -> Network:
    """See a model, in eval mode, as a function of its images.

    A LaunchError says that it is of none of the three libraries, or has parts
    that take more than images.
    """
    return _NETWORKS[library_of(config)](model).eval()


def load_network(config: Config, checkpoint: str) -> Network:
    """Read a checkpoint, :func:`load_model` and :func:`make_network`."""
    contents = require_checkpoint(checkpoint)
    return make_network(config, load_model(config, contents, checkpoint))


def describe(config: Config) -> dict[str, object]:
    """The library and the normalisation, for users of an exported file."""
    read = Preprocessor.from_config(config, STRIDE)
    return dict(
        library=library_of(config),
        mean=[float(value) for value in read.mean],
        std=[float(value) for value in read.std],
        channels='RGB' if read.rgb else 'BGR',
    )


def check_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A LaunchError unless both are positive multiples of the stride, 32."""
    height, width = shape
    if min(shape) < STRIDE or height % STRIDE or width % STRIDE:
        raise LaunchError(
            f'height and width must be multiples of {STRIDE}, the stride of '
            f'the last stage, got {height} x {width}: the strided '
            'convolutions would leave out the last rows and columns'
        )
    return height, width


def random_images(shape: Sequence[int], num: int = 1, seed: int = 0) -> Tensor:
    """Standard normal ``(num, 3, H, W)``, the same on each call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 3, *shape, generator=generator)


def example(
    shape: Sequence[int], dynamic: bool
) -> tuple[Tensor, tuple | None]:
    """Images for an exporter, and torch's description of what may change.

    With ``dynamic`` that is their number and, in steps of 32, their size.
    """
    if not dynamic:
        return random_images(shape), None
    # What is one is taken for a constant, and AOTInductor takes sizes that are
    # equal here for one size: two images, and other numbers of rows and of
    # columns of the last map.
    rows, columns = (max(size // STRIDE, 3) for size in shape)
    columns += columns == rows
    images = random_images((STRIDE * rows, STRIDE * columns), 2)
    height = STRIDE * torch.export.Dim('rows', min=2)
    width = STRIDE * torch.export.Dim('columns', min=2)
    return images, ({0: torch.export.Dim('batch'), 2: height, 3: width},)
