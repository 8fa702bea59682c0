"""The command ``pelk``: the tools of the project, by name.

Each is a script that is run as such: from a clone, an editable install and a
wheel alike.
"""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from pathlib import Path

from .version import __version__

TOOLS = Path(__file__).parent / '.mim' / 'tools'

#: A file of :data:`TOOLS` or a module, and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    'demo': ('demo.py', 'make a small data set, train on it, draw'),
    'doctor': ('pelk_mm.doctor', 'check the environment'),
    'build-mmcv': (
        'mmcv_build/build_mmcv.py',
        'build mmcv with its operators for the torch that is here',
    ),
    'train': ('train.py', 'train a model'),
    'test': ('test.py', 'evaluate a checkpoint'),
    'dist-train': ('dist_train.sh', 'train on several GPUs'),
    'dist-test': ('dist_test.sh', 'evaluate on several GPUs'),
    'slurm-train': ('slurm_train.sh', 'train under Slurm'),
    'predict': ('image_demo.py', 'run a model on images and draw the result'),
    'convert': (
        'model_converters/from_convnext.py',
        'start a PeLK from the weights of a ConvNeXt',
    ),
    'grow': ('model_converters/grow_kernel.py', 'enlarge trained kernels'),
    'merge': (
        'model_converters/reparameterize.py',
        'merge the branches of a trained model for inference',
    ),
    'publish': (
        'model_converters/publish_model.py',
        'strip a checkpoint to its weights, and name it by its hash',
    ),
    'export onnx': ('deployment/export_onnx.py', 'write an ONNX file'),
    'export torch': ('deployment/export_torch.py', 'write a .pt2 file'),
    'verify': (
        'deployment/verify.py',
        'compare an exported file with its model',
    ),
    'flops': (
        'analysis_tools/get_flops.py',
        'count parameters and multiply-accumulates',
    ),
    'kernels': ('analysis_tools/visualize_kernels.py', 'draw kernels'),
    'erf': (
        'analysis_tools/visualize_erf.py',
        'draw effective receptive fields',
    ),
    'scaling': (
        'analysis_tools/kernel_scaling.py',
        'measure the cost of kernels by their size',
    ),
    'sparsity': (
        'analysis_tools/sparsity_report.py',
        'list the density of every layer of a checkpoint',
    ),
    'backends': ('pelk_mm.ops.backends', "say which of the operator's run"),
}


def main() -> None:
    """Become the tool that the command line names."""
    words = sys.argv[1:]
    if words in ([], ['-h'], ['--help']):
        print(usage())
    elif words == ['--version']:
        print(f'pelk_mm {__version__}')
    else:
        command = call(words)
        os.execv(command[0], command)


def call(words: list[str]) -> list[str]:
    """The command line of a tool from what stands behind ``pelk``."""
    for name, (tool, _) in COMMANDS.items():
        count = len(name.split())
        if ' '.join(words[:count]) == name:
            return [*_runner(tool), *words[count:]]
    sys.exit(f'error: there is no command {words[0]!r}{_meant(words)}')


def _runner(tool: str) -> list[str]:
    if tool.endswith('.sh'):
        return ['/bin/bash', str(TOOLS / tool)]
    if tool.endswith('.py'):
        return [sys.executable, str(TOOLS / tool)]
    return [sys.executable, '-m', tool]


def _meant(words: list[str]) -> str:
    text = ' '.join(words[:2])
    begun = [name for name in COMMANDS if name.startswith(f'{words[0]} ')]
    found = begun or get_close_matches(text, COMMANDS, 1, 0.5)
    found = found or get_close_matches(words[0], COMMANDS, 1)
    meant = f'; did you mean {" or ".join(found)}?' if found else ''
    return f'{meant} (pelk --help lists them)'


def usage() -> str:
    lines = [
        'usage: pelk COMMAND [arguments]',
        '',
        'PeLK for OpenMMLab. Configs are files, or names of configs that come',
        'along, as in: pelk train upernet_pelk_t_ade20k',
        '',
        *(f'  {name:<13} {does}' for name, (_, does) in COMMANDS.items()),
        '',
        'pelk COMMAND --help says more, pelk --version which version this is.',
    ]
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
