"""What a config finds by name, each case in a process of its own."""

import sys
import textwrap

import pytest

from tests.helpers import commands, forked

#: Found and built by the registries of `library`, with names in `scope`.
BUILD = """
    import sys
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope

    config = Config.fromfile({config!r})
    if config.default_scope:
        init_default_scope(config.default_scope)
    from {library}.registry import HOOKS, MODELS

    model = MODELS.build(config.model)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    hook = HOOKS.build(config.hook)
    print('built', *(type(x).__module__ + '.' + type(x).__name__
                     for x in (model, wrapper, hook)))
    assert wrapper.optimizer.param_groups[0]['group_name'] == (
        'layer_0_no_decay')
"""
CONFIG = """
    {head}
    model = dict(
        type='{scope}PeLK',
        arch=dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, 8),
                  kernel_sizes=(5, 5, 5, 5)))
    optim_wrapper = dict(
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        constructor='{scope}LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(decay_rate=0.9))
    hook = dict(type='{scope}SafeCheckpointHook')
"""
IMPORTS = "custom_imports = dict(imports=['pelk_mm'])"
#: library, its default_scope, what the config imports, the names' scope.
CASES = {
    'mmpretrain': ('mmpretrain', 'mmpretrain', IMPORTS, ''),
    'mmseg': ('mmseg', 'mmseg', IMPORTS, ''),
    'mmdet': ('mmdet', 'mmdet', IMPORTS, ''),
    'no import': ('mmengine', None, '', 'pelk_mm.'),
    'own scope': ('mmengine', 'pelk_mm', '', ''),
}
BROKEN = """
    import sys
    sys.modules['mmcv.cnn'] = None  # importing it fails
    from mmengine.registry import MODELS
    MODELS.build(dict(type='pelk_mm.PeLK'))
"""


@pytest.fixture
def run(tmp_path):
    """Run a program as ``forked.run``, or as another function does."""

    def write_and_run(text, runner=forked.run):
        program = tmp_path / 'program.py'
        program.write_text(textwrap.dedent(text))
        return runner(program)

    return write_and_run


def in_a_fresh_process(program):
    return commands.run(sys.executable, program)


@pytest.mark.parametrize(
    ('case', 'runner'),
    [
        *((case, forked.run) for case in CASES),
        # Here the libraries are not imported either.
        ('no import', in_a_fresh_process),
    ],
)
def test_names_are_found(run, tmp_path, case, runner):
    library, default_scope, imports, scope = CASES[case]
    config = tmp_path / 'config.py'
    head = f'{imports}; default_scope = {default_scope!r}'.lstrip('; ')
    text = CONFIG.format(head=head, scope=scope)
    config.write_text(textwrap.dedent(text))
    done = run(BUILD.format(config=str(config), library=library), runner)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        'built pelk_mm.models.backbones.pelk.PeLK '
        'mmengine.optim.optimizer.optimizer_wrapper.OptimWrapper '
        'pelk_mm.engine.hooks.safe_checkpoint_hook.SafeCheckpointHook'
    )


def test_a_broken_installation_says_so(run):
    """mmengine alone would only say that PeLK is not registered."""
    done = run(BROKEN)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('RuntimeError: pelk_mm cannot be imported')
    assert 'mmcv.cnn' in last
    assert 'ModuleNotFoundError' in done.stderr


def test_own_registries_stay_empty():
    """Everything is in mmengine's: any library's scope ends there."""
    from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS

    from pelk_mm import registry

    for own, root, name in (
        (registry.MODELS, MODELS, 'PeLK'),
        (registry.HOOKS, HOOKS, 'SafeCheckpointHook'),
        (
            registry.OPTIM_WRAPPER_CONSTRUCTORS,
            OPTIM_WRAPPER_CONSTRUCTORS,
            'LayerDecayOptimWrapperConstructor',
        ),
    ):
        assert own.scope == 'pelk_mm'
        assert not own.module_dict
        assert root.module_dict[name].__module__.startswith('pelk_mm.')
