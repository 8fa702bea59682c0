"""The data set of the demos, and the reading of images."""

from .transforms import StretchedGrey

__all__ = ['StretchedGrey']
