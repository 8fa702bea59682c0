"""Reading images, and drawing the digit scenes that the demos train on."""

from .transforms import StretchedGrey

__all__ = ['StretchedGrey']
