"""Makes the names of pelk_mm known to OpenMMLab packages as they are imported.

mmengine and mmpretrain look for configs and models in packages that they list
themselves. ``pelk_mm_names.pth`` imports this when Python starts, so that
scripts find ours that know nothing of pelk_mm; ``import pelk_mm`` does, too.
Therefore nothing is imported here, and nothing is done before one of those
packages is there.
"""

import os
import sys

#: Configs, tools and index, where every package of OpenMMLab has them.
MIM = os.path.join(os.path.dirname(__file__), 'pelk_mm', '.mim')
CONFIGS = os.path.join(MIM, 'configs', 'pelk')


def like(name: str) -> str:
    """What to say of a config that is not there: which one may be meant."""
    from difflib import get_close_matches

    files = sorted(os.listdir(CONFIGS))
    known = [file[:-3] for file in files if file.endswith('.py')]
    given = os.path.basename(name).removesuffix('.py')
    found = get_close_matches(given, known, 1)
    return f'; did you mean {found[0]}?' if found else ''


def _metafile(library):
    return os.path.join(CONFIGS, f'metafile_{library}.yml')


def _add_package(utils):
    """For ``mmengine.hub``."""
    utils.MODULE2PACKAGE['pelk_mm'] = 'pelk_mm'


def _add_bases(config):
    """For ``_base_ = 'pelk_mm::pelk/…'``."""
    theirs = config.Config._get_cfg_path

    def get_cfg_path(cfg_path, filename):
        package, _, name = cfg_path.partition('::')
        if package != 'pelk_mm':
            return theirs(cfg_path, filename)
        path = os.path.join(MIM, 'configs', name)
        if not os.path.isfile(path):
            text = f'{filename}: there is no config {cfg_path}{like(name)}'
            raise FileNotFoundError(text)
        # Of no scope: what our configs name is found from their library's.
        return path, None

    config.Config._get_cfg_path = staticmethod(get_cfg_path)


def _add_models(infer):
    """For the inferencers of mmseg and mmdet."""
    from mmengine.fileio import load

    inferencer = infer.BaseInferencer
    theirs = inferencer._get_models_from_metafile

    def with_ours(folder):
        yield from theirs(folder)
        for library in {'mmseg', 'mmdet'} & set(sys.modules):
            if inferencer._get_repo_or_mim_dir(library) == folder:
                for model in load(_metafile(library))['Models']:
                    path = os.path.join(MIM, model['Config'])
                    yield dict(model, Config=path, Weights=None)

    inferencer._get_models_from_metafile = staticmethod(with_ours)


def _add_classifiers(model):
    """For ``mmpretrain.get_model``."""
    path = _metafile('mmpretrain')
    model.ModelHub.register_model_index(path, config_prefix=MIM)


#: What is done with a module once it has been imported.
_TO_DO = {
    'mmengine.config.utils': _add_package,
    'mmengine.config.config': _add_bases,
    'mmengine.infer.infer': _add_models,
    'mmpretrain.apis.model': _add_classifiers,
}


def _add(module):
    try:
        _TO_DO.pop(module.__name__)(module)
    except Exception as error:
        # Whoever imports it need not use pelk_mm.
        from warnings import warn

        text = f'{module.__name__} cannot be told the names of pelk_mm, which '
        warn(f'{text}needs mmengine >= 0.10.4: {error!r}', stacklevel=2)


class _Finder:
    """Finds the modules above as others do, to do something after them."""

    seeks = set()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in _TO_DO or name in cls.seeks:
            return None
        from importlib.util import find_spec

        cls.seeks.add(name)
        try:
            spec = find_spec(name)
        finally:
            cls.seeks.remove(name)
        if spec is not None:
            run = spec.loader.exec_module

            def run_and_add(module):
                run(module)
                _add(module)

            spec.loader.exec_module = run_and_add
        return spec


for _name in _TO_DO.keys() & sys.modules.keys():
    _add(sys.modules[_name])
sys.meta_path.insert(0, _Finder)
