"""The C++ kernels as a library: opened with ctypes, called with tensors."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from struct import Struct, unpack_from

import torch
from torch import Tensor

#: PELK_MM_ABI in csrc/pelk_mm.h.
ABI = 1

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
# A pelk_mm_call: dtype, threads, shape, sizes and how many there are; the maps
# input, output, grad_input and grad_output; weight, bias and grad_weight.
_CALL = Struct('@qq4qPq' + 'P4q' * 4 + 'PPP')
_NO_MAP = 0, 0, 0, 0, 0
_OPENMP = (
    'GOMP_parallel',
    'omp_get_thread_num',
    'omp_get_num_threads',
    'omp_in_parallel',
)


class Library:
    """The functions of csrc/pelk_mm.h, on CPU tensors.

    Maps are ``(N, C, H, W)`` of any strides, weights ``(C, 1, k', k')``; all
    of one call have one dtype: float32, float64 or bfloat16. They are read in
    place, and work is shared among torch's own threads.
    """

    def __init__(self, path: Path) -> None:
        """Open the file. Raises OSError, its message naming the file."""
        _check_whole(path)
        try:
            # torch has been imported: the OpenMP runtime is the one it uses.
            library = ctypes.CDLL(str(path))
        except OSError as error:
            # Of one for another machine glibc says that it is not there.
            raise OSError(
                f'{path} cannot be loaded, it may be for another machine; '
                f'delete it or install pelk_mm again: {error}'
            ) from error
        _check_abi(path, library)
        for name in ('forward', 'backward'):
            function = getattr(library, f'pelk_mm_{name}')
            function.argtypes = [ctypes.c_char_p]
            function.restype = ctypes.c_char_p
        for name in ('instruction_sets', 'instruction_set'):
            getattr(library, f'pelk_mm_{name}').restype = ctypes.c_char_p
        library.pelk_mm_instruction_set.argtypes = [ctypes.c_char_p]
        self.path = path
        self._library = library
        self._forward = library.pelk_mm_forward
        self._backward = library.pelk_mm_backward
        self.use_openmp(*_openmp())

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sizes: tuple[int, ...],
        layout: torch.memory_format,
    ) -> Tensor:
        """Convolve; the result has the memory format ``layout``."""
        weight = weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        output = torch.empty_like(input, memory_format=layout)
        _run(
            self._forward,
            *(input, sizes),
            output=output,
            weight=weight,
            bias=bias,
        )
        return output

    def weight_grad(
        self, input: Tensor, grad_output: Tensor, sizes: tuple[int, ...]
    ) -> Tensor:
        """The gradient ``(C, 1, k', k')`` to the weight."""
        cells = len(sizes)
        grad = input.new_empty(input.shape[1], 1, cells, cells)
        _run(
            self._backward,
            *(input, sizes),
            grad_output=grad_output,
            grad_weight=grad,
        )
        return grad

    def backward(
        self,
        input: Tensor,
        weight: Tensor,
        grad_output: Tensor,
        sizes: tuple[int, ...],
        layout: torch.memory_format,
    ) -> tuple[Tensor, Tensor]:
        """The gradients to the input, in ``layout``, and to the weight."""
        weight = weight.contiguous()
        grad_input = torch.empty_like(input, memory_format=layout)
        grad_weight = torch.empty_like(weight)
        _run(
            self._backward,
            *(input, sizes),
            grad_input=grad_input,
            grad_output=grad_output,
            weight=weight,
            grad_weight=grad_weight,
        )
        return grad_input, grad_weight

    def instruction_sets(self) -> list[str]:
        """Those of this machine that there are kernels for, fastest first."""
        return self._library.pelk_mm_instruction_sets().decode().split()

    @property
    def instruction_set(self) -> str:
        """The one in use; tests set it."""
        return self._library.pelk_mm_instruction_set(None).decode()

    @instruction_set.setter
    def instruction_set(self, name: str) -> None:
        if self._library.pelk_mm_instruction_set(name.encode()) is None:
            known = ', '.join(self.instruction_sets())
            text = f'this machine runs kernels for {known}, not for {name!r}'
            raise ValueError(text)

    def poison_scratch(self, poison: bool) -> None:
        """For tests: fill scratch memory with NaN before it is used."""
        self._library.pelk_mm_poison_scratch(int(poison))

    def use_openmp(self, *functions: int | None) -> None:
        """Use these threads: addresses of the functions in ``_OPENMP``."""
        addresses = map(ctypes.c_void_p, functions)
        self._library.pelk_mm_use_openmp(*addresses)


def _check_whole(path: Path) -> None:
    """The loader of Linux crashes on a file that was cut short."""
    with path.open('rb') as file:
        head = file.read(64)
        size = file.seek(0, os.SEEK_END)
    if head[:5] != b'\x7fELF\x02':  # not ELF of 64 bits
        return
    order = '<' if head[5:6] == b'\x01' else '>'
    # The table of sections ends the file.
    end = 0
    if len(head) == 64:
        (table,) = unpack_from(f'{order}Q', head, 40)
        entry_bytes, entries = unpack_from(f'{order}HH', head, 58)
        end = table + entry_bytes * entries
    if not 0 < end <= size:
        text = f'{path} was cut short: it has {size} bytes; delete it'
        raise OSError(text)


def _check_abi(path: Path, library: ctypes.CDLL) -> None:
    try:
        number = library.pelk_mm_abi
    except AttributeError:
        raise OSError(f'{path} is no library of pelk_mm; delete it') from None
    number.restype = ctypes.c_int64
    if number() != ABI:
        raise OSError(
            f'{path} was built for another version of pelk_mm: its interface '
            f'is number {number()}, expected {ABI}; delete it or install '
            'pelk_mm again'
        )


def _openmp() -> list[int | None]:
    """Addresses of the functions of torch's OpenMP runtime, or None."""
    try:
        process = ctypes.CDLL(None)
        functions = [getattr(process, name) for name in _OPENMP]
    # Windows has no such name for what is loaded; or there is no OpenMP.
    except (TypeError, AttributeError):
        return [None] * len(_OPENMP)
    return [ctypes.cast(one, ctypes.c_void_p).value for one in functions]


def _address(
    name: str, tensor: Tensor | None, shape: Sequence[int], like: Tensor
) -> int:
    """Where a tensor begins, 0 for None, after a look at its shape and dtype.

    The library takes them for granted, and torch.ops can be called without
    peripheral_conv2d.
    """
    if tensor is None:
        return 0
    if tensor.shape != shape:
        expected, got = tuple(shape), tuple(tensor.shape)
        raise ValueError(f'{name} must be {expected}, got shape {got}')
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f'{name} must be {like.dtype} on {like.device} like input, '
            f'got {tensor.dtype} on {tensor.device}'
        )
    return tensor.data_ptr()


@lru_cache(maxsize=256)
def _array(sizes: tuple[int, ...]) -> ctypes.Array:
    return (ctypes.c_int64 * len(sizes))(*sizes)


def _run(
    function: Callable[[bytes], bytes | None],
    input: Tensor,
    sizes: tuple[int, ...],
    *,
    output: Tensor | None = None,
    grad_input: Tensor | None = None,
    grad_output: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    grad_weight: Tensor | None = None,
) -> None:
    if input.dtype not in _DTYPES:
        raise TypeError(f'there is no kernel for {input.dtype}')
    shape, channels, cells = input.shape, input.shape[1], len(sizes)
    maps = [input.data_ptr(), *input.stride()]
    for name, map in (
        ('output', output),
        ('grad_input', grad_input),
        ('grad_output', grad_output),
    ):
        if map is None:
            maps += _NO_MAP
        else:
            maps += _address(name, map, shape, input), *map.stride()
    weight_shape = channels, 1, cells, cells
    call = _CALL.pack(
        _DTYPES[input.dtype],
        torch.get_num_threads(),
        *shape,
        ctypes.addressof(_array(sizes)),
        cells,
        *maps,
        _address('weight', weight, weight_shape, input),
        _address('bias', bias, (channels,), input),
        _address('grad_weight', grad_weight, weight_shape, input),
    )
    error = function(call)
    if error is not None:
        raise RuntimeError(f'backend cpp: {error.decode()}')
