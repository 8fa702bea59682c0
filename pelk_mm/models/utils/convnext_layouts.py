"""What libraries call the parts of a ConvNeXt, and PeLK the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STAGES = 4
#: What a block has, by PeLK's names: layers, and vectors that are optional.
LAYERS = ('conv.large', 'norm', 'pointwise_conv1', 'pointwise_conv2')
VECTORS = ('gamma', 'grn.gamma', 'grn.beta')


@dataclass(frozen=True)
class Layout:
    """What a library calls the parts of a ConvNeXt.

    In names ``{i}`` is a stage counted from 0 and ``{n}`` from 1, ``{odd}``
    and ``{even}`` are 2i + 1 and 2i, ``{b}`` is a block and ``{j}`` the first
    or second layer. ``vectors`` may end before those of GRN. ``norms`` are
    those of each stage's output, ``final`` is that of a classifier, and
    ``head`` its linear layer; the latter two are beside the backbone where
    that is one part of the model.
    """

    name: str
    stem: tuple[str, str]
    downsample: str
    block: str
    layers: tuple[str, str, str, str]
    vectors: tuple[str, ...] = VECTORS
    norms: tuple[str, ...] = ()
    final: tuple[str, ...] = ()
    head: str = 'head'

    def kernel(self, stage: int = 0, block: int = 0) -> str:
        """Of a block; the first one tells the layout and the prefix."""
        return f'{_fill(self.block, stage, b=block)}{self.layers[0]}.weight'

    @property
    def roots(self) -> set[str]:
        """What the names of stem and stages start with."""
        names = [*self.stem]
        for i in range(STAGES):
            names += [_fill(self.downsample, i), _fill(self.block, i)]
        return {name.split('.')[0] for name in names}

    def pelk_names(self, depths: Sequence[int]) -> Iterator[tuple[str, str]]:
        """All names that there can be, and what PeLK calls the same."""

        def layer(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
            for kind in ('weight', 'bias'):
                yield f'{theirs}.{kind}', f'{ours}.{kind}'

        for j, name in enumerate(self.stem):
            yield from layer(name, f'downsample_layers.0.{j}')
        for i, depth in enumerate(depths):
            for j in (0, 1) if i else ():
                name = _fill(self.downsample, i, j=j)
                yield from layer(name, f'downsample_layers.{i}.{j}')
            for norm in self.norms:
                yield from layer(_fill(norm, i), f'norm{i}')
            for b in range(depth):
                theirs = _fill(self.block, i, b=b)
                ours = f'stages.{i}.blocks.{b}.'
                for pair in zip(self.layers, LAYERS, strict=True):
                    yield from layer(theirs + pair[0], ours + pair[1])
                for name, vector in zip(self.vectors, VECTORS, strict=False):
                    yield theirs + name, ours + vector


def _fill(name: str, i: int, **numbers: int) -> str:
    stage = dict(i=i, n=i + 1, odd=2 * i + 1, even=2 * i)
    return name.format(**{'b': 0, 'j': 0, **stage, **numbers})


_PATCHES = ('downsample_layers.0.0', 'downsample_layers.0.1')
LAYOUTS = (
    Layout(
        'mmpretrain',
        stem=_PATCHES,
        downsample='downsample_layers.{i}.{j}',
        block='stages.{i}.{b}.',
        layers=(
            'depthwise_conv',
            'norm',
            'pointwise_conv1',
            'pointwise_conv2',
        ),
        norms=('norm{i}',),
        head='head.fc',
    ),
    Layout(
        'original repository',
        stem=_PATCHES,
        downsample='downsample_layers.{i}.{j}',
        block='stages.{i}.{b}.',
        layers=('dwconv', 'norm', 'pwconv1', 'pwconv2'),
        # The second as in DINOv3's repository.
        norms=('norm{i}', 'norms.{i}'),
        final=('norm',),
    ),
    Layout(
        'timm',
        stem=('stem.0', 'stem.1'),
        downsample='stages.{i}.downsample.{j}',
        block='stages.{i}.blocks.{b}.',
        layers=('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2'),
        vectors=('gamma', 'mlp.grn.weight', 'mlp.grn.bias'),
        final=('head.norm', 'norm_pre'),
        head='head.fc',
    ),
    Layout(
        'timm, features_only',
        stem=('stem_0', 'stem_1'),
        downsample='stages_{i}.downsample.{j}',
        block='stages_{i}.blocks.{b}.',
        layers=('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2'),
        vectors=('gamma', 'mlp.grn.weight', 'mlp.grn.bias'),
    ),
    Layout(
        'torchvision',
        stem=('features.0.0', 'features.0.1'),
        downsample='features.{even}.{j}',
        block='features.{odd}.{b}.',
        layers=('block.0', 'block.2', 'block.3', 'block.5'),
        vectors=('layer_scale',),
        final=('classifier.0',),
        head='classifier.2',
    ),
    Layout(
        'Hugging Face',
        stem=('embeddings.patch_embeddings', 'embeddings.layernorm'),
        downsample='encoder.stages.{i}.downsampling_layer.{j}',
        block='encoder.stages.{i}.layers.{b}.',
        layers=('dwconv', 'layernorm', 'pwconv1', 'pwconv2'),
        vectors=('layer_scale_parameter', 'grn.weight', 'grn.bias'),
        norms=('hidden_states_norms.stage{n}',),
        final=('layernorm',),
        head='classifier',
    ),
    Layout(
        'Hugging Face, DINOv3',
        stem=('stages.0.downsample_layers.0', 'stages.0.downsample_layers.1'),
        downsample='stages.{i}.downsample_layers.{j}',
        block='stages.{i}.layers.{b}.',
        layers=(
            'depthwise_conv',
            'layer_norm',
            'pointwise_conv1',
            'pointwise_conv2',
        ),
        vectors=('gamma',),
        final=('layer_norm',),
        head='classifier',
    ),
)
