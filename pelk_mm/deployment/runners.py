"""Every form of a network behind one call: images in, named outputs out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from .packages import need


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
        onnxruntime, = need('onnxruntime')
        if not os.path.isfile(path):
            raise FileNotFoundError(f'there is no file {path}')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=['CPUExecutionProvider'])
        except Exception as error:
            # Its own classes derive from nothing more telling.
            raise RuntimeError(
                f'onnxruntime cannot run {path}: {error}') from error
        self.input = self.session.get_inputs()[0].name
        self.names = [
            output.name for output in self.session.get_outputs()]
        properties = self.session.get_modelmeta().custom_metadata_map
        self.metadata = read_metadata(properties)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Run ``(N, 3, H, W)``, normalised, float32."""
        outputs = self.session.run(self.names, {self.input: images.numpy()})
        return dict(
            zip(self.names, map(torch.from_numpy, outputs), strict=True))


def read_metadata(properties: dict[str, str]) -> dict:
    """What this project wrote into a file, by name, without its prefix."""
    found = {}
    for name, value in properties.items():
        if name.startswith('pelk_mm.'):
            try:
                found[name.removeprefix('pelk_mm.')] = json.loads(value)
            except ValueError:
                found[name.removeprefix('pelk_mm.')] = value
    return found
