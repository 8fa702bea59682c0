from .enlarged_kernels import EnlargedKernels, enlarge_kernels
from .pelk import PeLK

__all__ = ['EnlargedKernels', 'PeLK', 'enlarge_kernels']
