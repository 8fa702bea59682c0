"""The ways to compute a peripheral convolution, one file each."""

from .base import Backend, BackendError, memory_format
from .cpp import CppBackend
from .dense import DenseBackend
from .fft import FFTBackend
from .triton import TritonBackend

#: Every backend by name, in the order in which a choice prefers them.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        TritonBackend(),
        CppBackend(),
        DenseBackend(),
        FFTBackend(),
    )
}

__all__ = ['BACKENDS', 'Backend', 'BackendError', 'memory_format']
