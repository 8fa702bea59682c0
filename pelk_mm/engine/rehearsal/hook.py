"""The hook that tries a training out before its first iteration."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MMLogger, print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...utils.config import unwrapped
from ...utils.errors import LaunchError
from ...utils.output import quiet, silent
from ...utils.text import first_few
from ..schedules import check_schedule
from ..strategies import is_sharded
from .batches import elements, first_batches, innermost, parts_of, some_samples
from .failures import why, with_cause
from .heads import class_counts
from .samples import disagreeing, look_at_dataset, look_at_samples
from .unchanged import unchanged

#: Batches of validation that are tried.
_BATCHES = 2
_WAY_OUT = (
    'to train nevertheless: tools/train.py --no-rehearsal, or rehearse=False '
    'in the config'
)


@HOOKS.register_module()
class RehearsalHook(Hook):
    """Runs the loop once on real batches before a training starts.

    First it looks at samples of the data sets, for what would train without a
    crash, and wrongly. Then one batch goes through the loss and backward, and
    two batches of validation through prediction, metrics and drawing: on the
    device and in the precision of the training, on every process. The run is
    then as it was before: weights, buffers, optimizer, counts and random
    states, bit for bit. Optimizers do not step.

    It costs about one iteration, two of validation, and two seconds for the
    samples. A LaunchError says what would end the training, or what it would
    learn wrongly; what may be right on purpose is a warning. Data sets without
    a length are not looked at, sharded models go forward only. With
    ``rehearse = False`` in the config it does nothing.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Try the run out. Raises LaunchError where it would fail."""
        if not runner.cfg.get('rehearse', True):
            return
        start = time.perf_counter()
        _tell('param_scheduler', [], check_schedule(runner))
        model = unwrapped(runner.model)
        loops = [loop for loop in (runner.train_loop, runner.val_loop) if loop]
        data = [getattr(loop.dataloader, 'dataset', None) for loop in loops]
        data = [d for d in data if hasattr(d, '__getitem__') and _sized(d)]
        if data:
            print_log(
                'rehearsal: the loop is tried on a few real batches first '
                '(--no-rehearsal skips it)',
                'current',
            )
        parts = {id(part): part for d in data for part in parts_of(d)}
        tensors = model if isinstance(model, nn.Module) else nn.Module()
        with unchanged(tensors, runner.optim_wrapper, parts.values()):
            done = []
            if runner.train_loop.dataloader.dataset in data:
                done.append(self._samples(runner, model))
                done.append(self._train(runner, model))
            if runner.val_loop and runner.val_loop.dataloader.dataset in data:
                done.append(self._validate(runner))
        seconds = time.perf_counter() - start
        did = ', '.join(step for step in done if step)
        if did:
            print_log(f'rehearsal in {seconds:.1f} s: {did}', 'current')

    def _samples(self, runner: Runner, model: Any) -> str:
        name = 'train_dataloader'
        dataset = runner.train_loop.dataloader.dataset
        _tell(name, *look_at_dataset(dataset))
        samples, count = [], 0
        with _explained(runner, f'{name}: a sample cannot be loaded'):
            for sample in some_samples(dataset):
                samples += elements(sample)
                count += 1
        if isinstance(model, nn.Module):
            _tell(name, *look_at_samples(samples, dataset, model))
        return f'{count} samples'

    def _train(self, runner: Runner, model: Any) -> str:
        loader = runner.train_loop.dataloader
        with _explained(runner, 'the first batch cannot be loaded'):
            batches = first_batches(runner, loader, 'train_dataloader', 1)
            batch = next(batches, None)
        if batch is None:
            return ''
        runner.model.train()
        losses: dict = {}
        what = 'the first training iteration fails'
        with _explained(runner, what), _hushed():
            if is_sharded(runner):
                with torch.no_grad():
                    losses = _losses(runner.model, batch)
            else:
                # Not through DistributedDataParallel: it would wait for
                # gradients that never come, where they are to be named.
                step = type(model).train_step
                wrapper = _NoStep.around(runner.optim_wrapper)
                losses = step(model, batch, optim_wrapper=wrapper)
        if losses and not is_sharded(runner):
            _check_gradients(runner, model)
        total = float(torch.as_tensor(losses.get('loss', 0.0)).detach())
        if not math.isfinite(total):
            print_log(
                f'the loss of the first batch is {total}, before any step of '
                'the optimizer: check the inputs, their normalisation, and '
                'the weights that were loaded',
                'current',
                logging.WARNING,
            )
        return f'one training batch (loss {total:.4g})'

    def _validate(self, runner: Runner) -> str:
        loop = runner.val_loop
        dataset = loop.dataloader.dataset
        _tell('val_dataloader', *look_at_dataset(dataset))
        parts = [*innermost(runner.train_loop.dataloader.dataset)]
        _tell('validation', [], disagreeing([*parts, *innermost(dataset)]))
        runner.model.eval()
        evaluator = copy.copy(loop.evaluator)
        evaluator.metrics = [copy.copy(m) for m in evaluator.metrics]
        for metric in evaluator.metrics:
            metric.results = []
        size, count = 0, 0
        what = 'validation fails, as it would after the first epoch'
        with _explained(runner, what), _hushed(), torch.no_grad():
            for batch in first_batches(
                runner, loop.dataloader, 'val_dataloader', _BATCHES
            ):
                fp16 = getattr(loop, 'fp16', False)
                with autocast(enabled=fp16):
                    outputs = runner.model.val_step(batch)
                # Losses of validation come last.
                outputs = _predictions(outputs)
                evaluator.process(data_samples=outputs, data_batch=batch)
                _draw(runner, batch, outputs)
                size += len(outputs)
                count += 1
        if count:
            counts = class_counts(unwrapped(runner.model))
            metrics = _evaluate(evaluator, counts, size, len(dataset))
            _check_best(runner, metrics)
        return f'{count} batches of validation' if count else ''


def _sized(dataset: Any) -> bool:
    try:
        return len(dataset) >= 0
    except TypeError:
        return False


def _losses(model: Any, batch: Any) -> dict:
    """The losses of a model whose step cannot be taken back."""
    inner = unwrapped(model)
    data = inner.data_preprocessor(batch, True)
    losses = model(**data, mode='loss')
    return inner.parse_losses(losses)[1]


class _NoStep:
    """An optimizer wrapper that goes backward, and leaves the weights."""

    def __init__(self, wrapper: OptimWrapper) -> None:
        self._wrapper = wrapper

    @classmethod
    def around(cls, wrapper: OptimWrapper | OptimWrapperDict) -> Any:
        if isinstance(wrapper, OptimWrapperDict):
            each = {name: cls(one) for name, one in wrapper.items()}
            several = copy.copy(wrapper)
            several.optim_wrappers = each
            return several
        return cls(wrapper)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapper, name)

    def update_params(self, loss: torch.Tensor, *_: Any, **__: Any) -> None:
        self._wrapper.backward(self._wrapper.scale_loss(loss))

    def step(self, **_: Any) -> None:
        pass


def _check_gradients(runner: Runner, model: nn.Module) -> None:
    """Name parameters without a gradient, which DDP does not go on with."""
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    if not without:
        return
    text = f'{len(without)} trainable parameters get no gradient: '
    text += first_few(without)
    wrapped = runner.model
    if (
        isinstance(wrapped, DistributedDataParallel)
        and not wrapped.find_unused_parameters
        and not wrapped.static_graph
    ):
        raise LaunchError(
            f'{text}. On several processes the second iteration would fail: '
            'leave out of the model what is not used, freeze it '
            '(requires_grad=False), or set find_unused_parameters=True in the '
            'config, which costs time in every iteration'
        )
    print_log(f'{text}; they stay as they are', 'current', logging.WARNING)


def _predictions(outputs: Any) -> Any:
    if outputs and isinstance(outputs[-1], dict) and len(outputs) > 1:
        return outputs[:-1] if 'loss' in outputs[-1] else outputs
    return outputs


def _draw(runner: Runner, batch: Any, outputs: Any) -> None:
    """What hooks draw of a validation, into nothing."""
    visualizer = runner.visualizer
    backends, visualizer._vis_backends = visualizer._vis_backends, {}
    try:
        for hook in runner.hooks:
            drawing = 'VisualizationHook' in type(hook).__name__
            if drawing and not getattr(hook, 'show', False):
                hook = copy.copy(hook)
                hook.interval = 1
                hook.after_val_iter(runner, 0, batch, outputs)
    finally:
        visualizer._vis_backends = backends


def _evaluate(
    evaluator: Evaluator, counts: dict[str, int], size: int, total: int
) -> dict[str, Any]:
    """Metrics of the samples that were looked at.

    Some can only be had of a whole data set: what fails is a warning, unless
    that is what was looked at.
    """
    for metric in evaluator.metrics:
        # mmdetection's COCO metrics would go through every image.
        if getattr(metric, 'img_ids', 0) is None:
            ids = [r[-1]['img_id'] for r in metric.results if _has_id(r)]
            metric.img_ids = ids or None
    whole = size >= total
    try:
        with _hushed():
            metrics = evaluator.evaluate(total)
    except Exception as error:
        line = 'the metrics of validation fail'
        classes = (evaluator.dataset_meta or {}).get('classes') or ()
        for name, count in counts.items():
            if count > len(classes) > 0:
                line += f' (model.{name}.num_classes is {count}, the data '
                line += f'set has {len(classes)} classes)'
                break
        if whole:
            raise LaunchError(with_cause(line, error)) from error
        part = f'{line} on {size} of {total} samples, perhaps because '
        print_log(
            with_cause(f'{part}they are so few', error),
            'current',
            logging.WARNING,
        )
        return {}
    return metrics


def _check_best(runner: Runner, metrics: dict[str, Any]) -> None:
    """Metrics that the best checkpoint is chosen by, which must exist."""
    for hook in runner.hooks if metrics else ():
        names = getattr(hook, 'key_indicators', None) or []
        wrong = [n for n in names if n not in ('auto', *metrics)]
        if isinstance(hook, CheckpointHook) and wrong:
            raise LaunchError(
                f'save_best={wrong[0]!r} of {type(hook).__name__} is no metric'
                f' of the validation, which gives {first_few(metrics, 9)}'
            )


def _has_id(result: Any) -> bool:
    last = result[-1] if isinstance(result, tuple) and result else None
    return isinstance(last, dict) and 'img_id' in last


@contextmanager
def _hushed() -> Iterator[None]:
    """Without tables of metrics and warnings, which the run will say again."""
    with quiet(), silent(), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextmanager
def _explained(runner: Runner, what: str) -> Iterator[None]:
    """Say what failed, and why; where that is not known, let it through."""
    try:
        yield
    except LaunchError:
        raise
    except torch.cuda.OutOfMemoryError:
        # The training itself may have room: let it try.
        torch.cuda.empty_cache()
        print_log(
            'the rehearsal did not fit into the memory of the GPU; the '
            'training may not either',
            'current',
            logging.WARNING,
        )
    except Exception as error:
        reason = why(error, runner.model, runner.cfg)
        if reason is None and isinstance(error, TypeError):
            # mmengine replaces those of hooks, and their traceback is lost.
            raise RuntimeError(f'{what}: {error}') from error
        if reason is None:
            MMLogger.get_current_instance().error('rehearsal: %s', what)
            raise
        line = with_cause(f'{what}: {reason}', error)
        raise LaunchError(line) from error


def _tell(name: str, errors: list[str], warnings: list[str]) -> None:
    for line in dict.fromkeys(warnings):
        print_log(f'{name}: {line}', 'current', logging.WARNING)
    errors = list(dict.fromkeys(errors))
    if len(errors) == 1:
        raise LaunchError(f'{name}: {errors[0]} ({_WAY_OUT})')
    if errors:
        told = '\n- '.join([f'{name}:', *errors])
        raise LaunchError(f'{told}\n({_WAY_OUT})')
