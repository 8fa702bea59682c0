"""A run tried out on real batches before it starts, and what went wrong."""

from .hook import RehearsalHook

__all__ = ['RehearsalHook']
