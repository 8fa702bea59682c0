"""PeLK for OpenMMLab: importing this registers everything in it."""

from . import engine, models
from .version import __version__

__all__ = ['__version__', 'engine', 'models']
