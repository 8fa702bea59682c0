"""Every form of a network behind one call: images in, named outputs out."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from zipfile import ZipFile

import torch
from torch import Tensor

from .. import ops  # noqa: F401, packages of torch call its operator
from ..utils.errors import need

#: Under which files hold a JSON of what they are.
METADATA = 'pelk_mm'


class OnnxRunner:
    """An ONNX file in onnxruntime, on the CPU.

    Args:
        path (str | Path): The file.
        threads (int, optional): Default: torch's number.

    Attributes:
        metadata (dict): What the file says of itself.

    Raises:
        LaunchError: If onnxruntime is missing.
        RuntimeError: If the file is not one that it runs.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        (onnxruntime,) = need('onnxruntime')
        self.path = path = _existing(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                path, options, providers=['CPUExecutionProvider']
            )
        except Exception as error:
            # Its own classes derive from nothing more telling.
            raise RuntimeError(
                f'onnxruntime cannot run {path}: {error}'
            ) from error
        self.input = self.session.get_inputs()[0].name
        self.names = [output.name for output in self.session.get_outputs()]
        properties = self.session.get_modelmeta().custom_metadata_map
        self.metadata = json.loads(properties.get(METADATA, '{}'))

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Run ``(N, 3, H, W)``, normalised, float32.

        Raises:
            RuntimeError: If the file wants images of another shape.
        """
        try:
            outputs = self.session.run(
                self.names, {self.input: images.numpy()}
            )
        except Exception as error:
            raise RuntimeError(
                f'{self.path} does not take images {tuple(images.shape)}: '
                f'{error}'
            ) from error
        return dict(
            zip(self.names, map(torch.from_numpy, outputs), strict=True)
        )


class TorchRunner:
    """A ``.pt2`` package of :mod:`~pelk_mm.deployment.torch_export`.

    Args:
        path (str | Path): The file, of either kind.

    Attributes:
        metadata (dict): What the file says of itself.

    Raises:
        RuntimeError: If the file is not such a package.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = _existing(path)
        try:
            with ZipFile(path) as archive:
                compiled = any(
                    '/aotinductor/' in name for name in archive.namelist()
                )
            if compiled:
                # What torch 2.10's loader needs and does not import; slow,
                # so only for such packages.
                import_module('torch._inductor.codecache')
                self.network = torch._inductor.aoti_load_package(path)
                text = self.network.get_metadata().get(METADATA)
            else:
                extra = {METADATA: ''}
                program = torch.export.load(path, extra_files=extra)
                self.network = program.module()
                text = extra[METADATA]
        except Exception as error:
            raise RuntimeError(
                f'{path} cannot be loaded as a package of torch: {error}'
            ) from error
        if not text:
            raise RuntimeError(
                f'{path} does not say what its outputs are called: it is not '
                'of tools/deployment/export_torch.py'
            )
        self.metadata = json.loads(text)
        self.names = self.metadata['names']

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Run ``(N, 3, H, W)``, normalised, float32.

        Raises:
            RuntimeError: If the file wants images of another shape.
        """
        try:
            outputs = self.network(images)
        except Exception as error:
            raise RuntimeError(
                f'{self.path} does not take images {tuple(images.shape)}: '
                f'{error}'
            ) from error
        return dict(zip(self.names, outputs, strict=True))


def _existing(path: str | Path) -> str:
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no file {path}')
    return str(path)
