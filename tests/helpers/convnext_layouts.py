"""ConvNeXts as other libraries write them, made of mmpretrain's."""

import re

import torch
from mmengine.config import Config
from mmpretrain.models.backbones import ConvNeXt
from torch import Tensor, nn

from pelk_mm.utils.config import build_model

SIZE = dict(depths=[1, 1, 2, 1], channels=[8, 12, 16, 20])
#: The PeLK of that size, with kernels of several grids.
BACKBONE = dict(
    arch=dict(SIZE, kernel_sizes=[31, 15, 13, 9], center_radius=3),
    conv_ratio=1.0,
    small_kernel=None,
    pos_embed=False,
    out_indices=[0, 1, 2, 3],
)
#: Of V2's.
BACKBONE_V2 = dict(BACKBONE, use_grn=True, layer_scale_init_value=0.0)

#: The ConvNeXt, and a segmentor around either.
CONVNEXT = dict(
    type='mmpretrain.ConvNeXt',
    arch=SIZE,
    out_indices=[0, 1, 2, 3],
    gap_before_final_norm=False,
)
UPERNET = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor'),
    decode_head=dict(
        type='UPerHead',
        in_channels=SIZE['channels'],
        in_index=[0, 1, 2, 3],
        channels=8,
        pool_scales=(1, 2),
        num_classes=3,
    ),
    test_cfg=dict(mode='whole'),
)


def segmentor(backbone: dict) -> nn.Module:
    """An UperNet around a backbone."""
    model = dict(UPERNET, backbone=backbone)
    return build_model(Config(dict(default_scope='mmseg', model=model)))


def randomise(module: nn.Module) -> nn.Module:
    """Move every parameter to where an exchange of two is seen."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif name.endswith('bias') or '.grn.' in name:
            nn.init.uniform_(parameter, -0.5, 0.5)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
    module.eval()
    return module


def make_convnext(v2: bool = False, **kwargs) -> ConvNeXt:
    """A small one, whose LayerScale is about 1."""
    v2_only = dict(use_grn=True, layer_scale_init_value=0.0) if v2 else {}
    dense = dict(out_indices=[0, 1, 2, 3], gap_before_final_norm=False)
    return randomise(ConvNeXt(SIZE, **{**v2_only, **dense, **kwargs}))


def stage_outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """What the stages give, before the norms that libraries put behind."""
    outputs: list[Tensor] = []
    hooks = [
        stage.register_forward_hook(lambda *args: outputs.append(args[-1]))
        for stage in model.stages
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return outputs


#: What mmpretrain's names become, in this order; what becomes None is not in
#: such a file.
_CLASSIFIER = {r'norm[012]\..*': None}
_ORIGINAL = {r'depthwise_conv': 'dwconv', r'pointwise_conv': 'pwconv'}
_TIMM = {
    r'downsample_layers\.0\.': 'stem.',
    r'downsample_layers\.(\d)\.': r'stages.\1.downsample.',
    r'stages\.(\d)\.(\d)\.': r'stages.\1.blocks.\2.',
    r'depthwise_conv': 'conv_dw',
    r'pointwise_conv': 'mlp.fc',
    r'grn\.gamma': 'mlp.grn.weight',
    r'grn\.beta': 'mlp.grn.bias',
}
_TORCHVISION = {
    r'downsample_layers\.0\.': 'features.0.',
    r'downsample_layers\.1\.': 'features.2.',
    r'downsample_layers\.2\.': 'features.4.',
    r'downsample_layers\.3\.': 'features.6.',
    r'stages\.3\.(\d)\.': r'features.7.\1.',
    r'stages\.2\.(\d)\.': r'features.5.\1.',
    r'stages\.1\.(\d)\.': r'features.3.\1.',
    r'stages\.0\.(\d)\.': r'features.1.\1.',
    r'depthwise_conv': 'block.0',
    r'(features.*)\.norm\.': r'\1.block.2.',
    r'pointwise_conv1': 'block.3',
    r'pointwise_conv2': 'block.5',
    r'gamma': 'layer_scale',
    r'^norm3': 'classifier.0',
}
_HUGGING_FACE = {
    r'downsample_layers\.0\.0': 'embeddings.patch_embeddings',
    r'downsample_layers\.0\.1': 'embeddings.layernorm',
    r'downsample_layers\.(\d)\.': r'encoder.stages.\1.downsampling_layer.',
    r'^stages\.(\d)\.(\d)\.': r'encoder.stages.\1.layers.\2.',
    r'depthwise_conv': 'dwconv',
    r'pointwise_conv': 'pwconv',
    r'\.norm\.': '.layernorm.',
    r'grn\.gamma': 'grn.weight',
    r'grn\.beta': 'grn.bias',
    r'gamma': 'layer_scale_parameter',
}
_DINOV3 = {
    r'downsample_layers\.(\d)\.': r'stages.\1.downsample_layers.',
    r'^stages\.(\d)\.(\d)\.': r'stages.\1.layers.\2.',
    r'\.norm\.': '.layer_norm.',
}
_NAMES = {
    'mmpretrain': {},
    'mmpretrain, classifier': {**_CLASSIFIER, '^': 'backbone.'},
    'mmsegmentation': {'^': 'backbone.'},
    'original': {**_ORIGINAL, **_CLASSIFIER, r'^norm3': 'norm'},
    'original, dense': {**_ORIGINAL, '^': 'module.backbone.'},
    'timm': {**_TIMM, **_CLASSIFIER, r'^norm3': 'head.norm'},
    'timm, norm first': {**_TIMM, **_CLASSIFIER, r'^norm3': 'norm_pre'},
    'timm, features_only': {
        **_TIMM,
        r'stem\.': 'stem_',
        r'stages\.': 'stages_',
        r'norm\d\..*': None,
    },
    'open_clip': {**_TIMM, r'norm\d\..*': None, '^': 'visual.trunk.'},
    'torchvision': {**_TORCHVISION, **_CLASSIFIER},
    'Hugging Face': {
        **_HUGGING_FACE,
        **_CLASSIFIER,
        r'^norm3': 'layernorm',
        r'^': 'convnext.',
    },
    'Hugging Face, backbone': {
        **_HUGGING_FACE,
        r'^norm0': 'hidden_states_norms.stage1',
        r'^norm1': 'hidden_states_norms.stage2',
        r'^norm2': 'hidden_states_norms.stage3',
        r'^norm3': 'hidden_states_norms.stage4',
    },
    'Hugging Face, DINOv3': {
        **_DINOV3,
        **_CLASSIFIER,
        r'^stages': 'model.stages',
        r'^norm3': 'layer_norm',
    },
    'Hugging Face, DINOv3 on the hub': {
        **_DINOV3,
        **_CLASSIFIER,
        r'^norm3': 'layer_norm',
    },
    'DINOv3': {**_ORIGINAL, **_CLASSIFIER, r'^norm3': 'norms.3'},
}
#: What else is in a file, by its layout: a classifier of three classes.
_HEADS = {
    'mmpretrain, classifier': 'head.fc',
    'original': 'head',
    'timm': 'head.fc',
    'timm, norm first': 'head.fc',
    'torchvision': 'classifier.2',
    'Hugging Face': 'classifier',
}
#: Those of V2, of which there is none in torchvision or DINOv3.
LAYOUTS_V2 = [
    name for name in _NAMES if not re.search('torchvision|DINOv3', name)
]
LAYOUTS = list(_NAMES)
WITH_HEADS = list(_HEADS)


def _shape(name: str, layout: str) -> tuple[int, ...] | None:
    """Of vectors that some libraries write with more dimensions."""
    if name.endswith('layer_scale'):
        return (-1, 1, 1)
    original = layout.startswith(('original', 'Hugging Face'))
    return (1, 1, 1, -1) if original and '.grn.' in name else None


def write(
    convnext: ConvNeXt, layout: str, head: nn.Linear | None = None
) -> dict[str, Tensor]:
    """The state dict of a ConvNeXt, and of a linear layer, in a layout."""
    state = {}
    for name, value in convnext.state_dict().items():
        new: str | None = name
        for pattern, replacement in _NAMES[layout].items():
            if replacement is None and re.match(pattern, new):
                new = None
            elif replacement is not None:
                new = re.sub(pattern, replacement, new)
            if new is None:
                break
        else:
            state[new] = value.view(_shape(new, layout) or value.shape)
    if head is not None:
        state |= {
            f'{_HEADS[layout]}.{k}': v for k, v in head.state_dict().items()
        }
    return state
