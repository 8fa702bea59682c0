"""The ways to compute a peripheral convolution, one file each."""

from .base import Backend, BackendError, memory_format
from .cpp import CppBackend
from .dense import DenseBackend
from .fft import FFTBackend
from .triton import TritonBackend

_ALL = TritonBackend(), CppBackend(), DenseBackend(), FFTBackend()
#: Every backend by name.
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _ALL}

__all__ = ['BACKENDS', 'Backend', 'BackendError', 'memory_format']
