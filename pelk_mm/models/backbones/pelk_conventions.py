"""What timm and the Hugging Face Hub expect of a network, for PeLK.

huggingface_hub is optional, and imported when it is first used.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils import load_pretrained

if TYPE_CHECKING:
    from .pelk import PeLK

_WEIGHTS = 'model.safetensors'
_CARD = """\
---
{{ card_data }}
---

A backbone of pelk_mm: [PeLK](https://arxiv.org/abs/2403.07589), large-kernel
ConvNets with peripheral convolution.

```python
from pelk_mm.models import PeLK

model = PeLK.from_pretrained('PATH OR USER/NAME OF THIS REPOSITORY')
```
"""
_REPOSITORY = re.compile(r'[\w.-]+/[\w.-]+')
#: For downloads, in old versions of huggingface_hub and new ones.
_DOWNLOAD = (
    'revision',
    'cache_dir',
    'force_download',
    'local_files_only',
    'token',
    'proxies',
    'resume_download',
)


class Conventions:
    """Names of timm's, and saving and loading by huggingface_hub's mixin."""

    @property
    def num_features(self: Any) -> int:
        """Channels of the last stage that is built."""
        return self.channels[len(self.stages) - 1]

    @property
    def feature_info(self: Any) -> list[dict[str, Any]]:
        """Channels, stride and module of each stage, as timm lists them."""
        return [
            dict(
                num_chs=self.channels[i],
                reduction=self.stem_stride * 2**i,
                module=f'stages.{i}',
            )
            for i in range(len(self.stages))
        ]

    @property
    def config(self: Any) -> dict[str, Any]:
        """Arguments that build it as it is now, of plain values.

        Without ``init_cfg`` and ``backend``, which are of one machine.
        """
        arch = self.arch
        if not isinstance(arch, str):
            fields = 'depths', 'channels', 'kernel_sizes', 'center_radius'
            arch = {field: getattr(self, field) for field in fields}
        config = dict(
            self._stage_cfg,
            arch=arch,
            in_channels=self.in_channels,
            drop_path_rate=self.drop_path_rate,
            out_indices=self.out_indices,
            frozen_stages=self.frozen_stages,
            gap_before_final_norm=self.gap_before_final_norm,
            deploy=self.deploy,
        )
        del config['backend']
        return config

    def save_pretrained(
        self: Any, save_directory: str | Path, **kwargs: Any
    ) -> str | None:
        """Save the weights and the arguments to a folder.

        Writes ``model.safetensors``, ``config.json`` and, if there is none, a
        model card ``README.md``.

        Args:
            save_directory (str | Path): Made if need be.
            **kwargs: Of huggingface_hub's ``ModelHubMixin.save_pretrained``,
                such as ``push_to_hub=True``.

        Raises:
            ImportError: If huggingface_hub or safetensors is not installed.
        """
        hub = _on_hub(type(self))(self)
        return hub.save_pretrained(
            save_directory, config=self.config, **kwargs
        )

    def push_to_hub(self: Any, repo_id: str, **kwargs: Any) -> str:
        """Save to a repository of the Hugging Face Hub, ``'user/name'``.

        See :meth:`save_pretrained`, and for ``kwargs`` huggingface_hub's
        ``ModelHubMixin.push_to_hub``.
        """
        hub = _on_hub(type(self))(self)
        return hub.push_to_hub(repo_id, config=self.config, **kwargs)

    @classmethod
    def from_pretrained(
        cls: Any, name_or_path: str | Path, **kwargs: Any
    ) -> PeLK:
        """Build what :meth:`save_pretrained` saved, in eval mode.

        Args:
            name_or_path (str | Path): The folder, or a repository of the
                Hugging Face Hub, ``'user/name'``.
            **kwargs: Arguments of the model to set otherwise, such as
                ``out_indices``; and those of huggingface_hub's
                ``ModelHubMixin.from_pretrained``, such as ``revision``.

        Raises:
            ImportError: If huggingface_hub or safetensors is not installed.
            FileNotFoundError: If there is no such folder or repository, or it
                lacks a file.
            RuntimeError: If the weights are of another model.
        """
        name = str(name_or_path)
        hub = _on_hub(cls)
        try:
            if not (Path(name).is_dir() or _REPOSITORY.fullmatch(name)):
                raise FileNotFoundError(
                    'there is no such folder; single files are loaded by '
                    'pelk_mm.models.load_pretrained(model, file)'
                )
            return hub.from_pretrained(name, **kwargs)
        except FileNotFoundError as error:
            raise FileNotFoundError(f'{name}: {error}') from error


def _on_hub(kind: Any) -> Any:
    """What saves models of a kind, and loads them, with the mixin."""
    try:
        import safetensors.torch
        from huggingface_hub import ModelHubMixin, hf_hub_download
    except ImportError as error:
        raise ImportError(
            'save_pretrained, push_to_hub and from_pretrained need '
            f'huggingface_hub and safetensors ({error}): pip install '
            'huggingface_hub safetensors'
        ) from error

    class OnHub(  # type: ignore[call-arg]
        ModelHubMixin,
        library_name='pelk_mm',
        pipeline_tag='image-feature-extraction',
        model_card_template=_CARD,
    ):
        def __init__(self, model: PeLK) -> None:
            self.model = model

        def _save_pretrained(self, save_directory: Path) -> None:
            path = str(save_directory / _WEIGHTS)
            safetensors.torch.save_model(self.model, path)

        @classmethod
        def _from_pretrained(  # type: ignore[override]
            cls, *, model_id: str, config: Any = None, **kwargs: Any
        ) -> PeLK:
            if config is None or 'arch' not in config:
                raise FileNotFoundError(
                    f'there is no config.json of a {kind.__name__}, as '
                    'save_pretrained writes it'
                )
            names = [name for name in _DOWNLOAD if name in kwargs]
            options = {name: kwargs.pop(name) for name in names}
            model = kind(**config | kwargs)
            path = str(Path(model_id, _WEIGHTS))
            if not Path(model_id).is_dir():
                path = hf_hub_download(model_id, _WEIGHTS, **options)
            load_pretrained(model, path)
            return model.eval()

    return OnHub
