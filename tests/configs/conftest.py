"""What the tests of all configs share."""

from collections.abc import Callable

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope


@pytest.fixture
def load(root) -> Callable[[str], Config]:
    """Read a config by name and select its library's registries."""

    def read(name: str) -> Config:
        config = Config.fromfile(root / 'configs' / f'{name}.py')
        init_default_scope(config.default_scope)
        return config

    return read
