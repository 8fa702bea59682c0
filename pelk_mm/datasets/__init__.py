"""The data set of the demos, and checks of where data is."""

from .transforms import StretchedGrey

__all__ = ['StretchedGrey']
