"""Dynamic sparsity: when masks are drawn, enforced, moved and saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseAveragedModel
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ...ops.checks import check_bool, check_choice, check_integer, check_number
from ..sparsity.enforcer import MaskEnforcer, whole_model
from ..sparsity.masks import (
    check_patterns,
    draw_masks,
    erk_densities,
    select_weights,
    trainable_weights,
    uniform_densities,
)
from ..sparsity.matching import fit_masks, masks_at_hand, why_not_resume
from ..sparsity.schedule import Schedule
from ..sparsity.snip import mean_snip_scores, snip_densities
from ..sparsity.state import (
    STATE_KEY,
    pack_state,
    pretrained_masks,
    unpack_masks,
)

_BY_SHAPE = {'erk': erk_densities, 'uniform': uniform_densities}
# growth='momentum' averages the dense gradient over this many steps before
# the masks move.
_GATHER_STEPS = 10
# torch's generators take no larger one.
_LARGEST_SEED = 2**63 - 1


@HOOKS.register_module()
class DynamicSparsityHook(Hook):
    """Train a network sparse from the start, with a moving pattern.

    A fixed share of the 2-D and 4-D weights is zero at all times. Every
    ``update_interval`` optimizer steps the non-zero weights of smallest
    magnitude are dropped in each layer and as many pruned ones grown; the
    share decays from ``prune_rate`` to ``min_prune_rate`` along a cosine.
    This is the scheme of `SLaK <https://arxiv.org/abs/2207.03620>`_ with one
    difference: a weight just dropped is no candidate for growth in the same
    update.

    Pruned weights are zero after every step, feed no moments and are not seen
    by gradient clipping, also in averaged models and on all ranks;
    :class:`MaskEnforcer` tells how. Masks, step, prune rate and generator are
    kept in the checkpoint under ``'dynamic_sparsity'``: a resumed run goes on
    exactly as if it had not been interrupted.

    Unstructured zeros make nothing faster: dense kernels multiply them like
    any other number. What they buy is a smaller count of non-zero weights.

    Args:
        sparsity (float): Share of the masked weights that is zero, in [0, 1).
            Not used by ``init='zeros'``. Default: 0.4.
        init (str): Where the masks come from. Default: 'snip'.

            - 'snip': density per layer by SNIP on the first training batch,
              with the model's own loss, positions at random.
            - 'erk': density per layer by its shape (Erdos-Renyi-kernel).
            - 'uniform': the same density in every layer.
            - 'zeros': the masks of the checkpoint that is loaded
              (``load_from`` or ``init_cfg`` of type 'Pretrained') or, where
              it holds none, its zeros; together with
              ``update_interval=None`` a sparse pre-trained network is
              fine-tuned as sparse as it came.
        prune_rate (float): Share of each layer's non-zero weights exchanged
            by an update at the start. Default: 0.5.
        min_prune_rate (float): The share at ``end``. Default: 0.005.
        update_interval (int, optional): Optimizer steps between updates, not
            counting those a loss scaler skips; None keeps the masks as they
            are. Default: 2000.
        growth (str): Which pruned weights grow. 'random' draws them evenly;
            'momentum' takes those with the largest average of the dense
            gradient (factor 0.9) over the last 10 steps before the update,
            at the price of one all-reduce of the gradients in each of these
            steps. As pruned weights feed no moments, the optimizer's own
            momentum cannot serve. Default: 'random'.
        end (int, optional): Optimizer step from which the masks stay. None is
            the end of the training. Default: None.
        include (str | Sequence[str]): Regular expressions searched in
            parameter names; 2-D and 4-D weights that one matches are masked.
            Default: the modules named ``backbone``.
        exclude (str | Sequence[str]): Regular expressions that take weights
            out again. Default: ().
        seed (int): Seed of the masks, the same on all ranks. Default: 0.
        redraw (bool): Allow drawing new masks over trained weights where
            those of the checkpoint do not go with this hook's ``sparsity`` or
            scope, or where it holds none. Where they do go together they are
            kept, so that an automatic resume does not draw twice. Default:
            False.

    Weights that are frozen (``requires_grad=False``) when masks are drawn
    stay dense; masks of weights that are frozen later do not move.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range or a pattern is no regular
            expression.

    Example:
        >>> custom_hooks = [
        ...     dict(type='DynamicSparsityHook', sparsity=0.4, init='snip',
        ...          update_interval=2000)
        ... ]
    """

    # Before EMAHook ('NORMAL') averages and CheckpointHook saves.
    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        sparsity: float = 0.4,
        init: str = 'snip',
        prune_rate: float = 0.5,
        min_prune_rate: float = 0.005,
        update_interval: int | None = 2000,
        growth: str = 'random',
        end: int | None = None,
        include: str | Sequence[str] = (r'(^|\.)backbone\.',),
        exclude: str | Sequence[str] = (),
        seed: int = 0,
        redraw: bool = False,
    ) -> None:
        self.sparsity = check_number('sparsity', sparsity, 0, 1)
        if self.sparsity == 1:
            text = 'sparsity must be below 1, got 1: no weight would be left'
            raise ValueError(text)
        self.init = check_choice('init', init, ('snip', *_BY_SHAPE, 'zeros'))
        rates = prune_rate, min_prune_rate
        self.schedule = Schedule(*rates, update_interval, end)
        self.growth = check_choice('growth', growth, ('random', 'momentum'))
        self.include = check_patterns('include', include)
        if not self.include:
            raise ValueError(
                'include names no pattern, so that nothing '
                "would be masked; use ['.'] for every weight"
            )
        self.exclude = check_patterns('exclude', exclude)
        self.seed = check_integer('seed', seed, 0, _LARGEST_SEED)
        self.redraw = check_bool('redraw', redraw)

        self.step = 0
        self.enforcer: MaskEnforcer | None = None
        self._generator = torch.Generator().manual_seed(self.seed)
        self._end = end
        self._model: nn.Module | None = None
        self._weights: dict[str, nn.Parameter] = {}
        self._loaded: dict | None = None
        self._has_loaded = self._has_resumed = False

    # Before training --------------------------------------------------------

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take the masks out of the checkpoint; they apply in before_train."""
        self._has_loaded = True
        self._has_resumed = runner._resume
        self._loaded = checkpoint.get(STATE_KEY)

    def before_train(self, runner: Runner) -> None:
        """Restore, read or draw the masks and start to enforce them.

        ``init='snip'`` waits for the first batch.
        """
        if sum(isinstance(h, DynamicSparsityHook) for h in runner.hooks) > 1:
            raise ValueError(
                'there is more than one DynamicSparsityHook, and a checkpoint '
                'holds the masks of one; use include and exclude of a single '
                'hook'
            )
        model = whole_model(runner.model)
        again = self._model is model and self.enforcer is not None
        self._model = model
        self._weights = select_weights(model, self.include, self.exclude)
        accumulation = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        steps = -(-runner.max_iters // accumulation)
        self.schedule = replace(self.schedule, end=self._end or steps)

        if again:
            self._enforce(runner, self.enforcer.masks, 'kept from before')
            return
        self.enforcer, self.step = None, 0
        loaded = self._loaded
        if self._has_resumed:
            if self._can_resume(runner):
                self._restore(runner, loaded)
                return
            done = runner.iter // accumulation
            self.step = loaded['step'] if loaded else done
            loaded = None
        if self.init == 'zeros':
            self._read(runner, loaded)
        elif loaded is None or self.redraw:
            self._draw_by_shape(runner)
        else:
            raise ValueError(
                'the loaded checkpoint is sparse and holds its masks; '
                f'init={self.init!r} would draw others and zero '
                f'{self.sparsity:.0%} of its trained weights. Use '
                "init='zeros' to keep its masks, or redraw=True if new ones "
                'are meant'
            )

    def _can_resume(self, runner: Runner) -> bool:
        """Whether the checkpoint's masks go on, or new ones replace them."""
        sparsity = None if self.init == 'zeros' else self.sparsity
        at_hand = self._model, self._weights, sparsity
        reason = why_not_resume(self._loaded, *at_hand)
        if reason is None:
            return True
        if not self.redraw:
            raise ValueError(
                f'cannot resume the sparse training: {reason}. Going on '
                'would zero trained weights. Set redraw=True in '
                'DynamicSparsityHook if that is meant'
            )
        runner.logger.warning(
            f'DynamicSparsityHook: {reason}; redraw=True, '
            'so new masks are drawn over trained weights'
        )
        return False

    def _restore(self, runner: Runner, state: Mapping[str, Any]) -> None:
        """Go on exactly where a checkpoint was saved."""
        masks = fit_masks(unpack_masks(state), self._weights)
        self.step = int(state['step'])
        self._generator.set_state(state['generator'].cpu())
        if abs(state['prune_rate'] - self.current_prune_rate) > 1e-9:
            runner.logger.warning(
                'DynamicSparsityHook: the schedule changed, the prune rate '
                f'at step {self.step} goes from {state["prune_rate"]:.4f} to '
                f'{self.current_prune_rate:.4f}'
            )
        self._enforce(runner, masks, f'resumed at step {self.step}')
        momentum = state['momentum'].items()
        self.enforcer.momentum = {
            name: average.to(masks[name].device) for name, average in momentum
        }

    def _read(self, runner: Runner, state: Mapping[str, Any] | None) -> None:
        """``init='zeros'``: masks of a sparse checkpoint, or its zeros."""
        if state is not None:
            saved = unpack_masks(state)
        else:
            saved = {} if self._has_loaded else pretrained_masks(self._model)
        self._enforce(runner, *masks_at_hand(saved, self._weights))

    def _draw_by_shape(self, runner: Runner) -> None:
        """Draw masks now; ``init='snip'`` draws them on the first batch."""
        self._generator.manual_seed(self.seed)
        if self.init != 'snip':
            weights = trainable_weights(self._weights)
            shapes = {name: weight.shape for name, weight in weights.items()}
            densities = _BY_SHAPE[self.init](shapes, 1 - self.sparsity)
            self._draw(runner, densities)
        elif isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ValueError(
                "init='snip' needs one loss and one optimizer, got an "
                "OptimWrapperDict; use init='erk' or 'uniform'"
            )

    def _draw(self, runner: Runner, densities: Mapping[str, float]) -> None:
        masks = draw_masks(self._weights, densities, self._generator)
        dense = len(self._weights) - len(densities)
        note = f', {dense} frozen weights left dense' if dense else ''
        self._enforce(runner, masks, f'drawn by {self.init}{note}')

    def _enforce(
        self, runner: Runner, masks: Mapping[str, Tensor], origin: str
    ) -> None:
        """Enforce masks from now on."""
        wrapper = runner.optim_wrapper
        several = isinstance(wrapper, OptimWrapperDict)
        wrappers = wrapper.values() if several else [wrapper]
        optimizers = [wrapper.optimizer for wrapper in wrappers]
        copies = [getattr(hook, 'ema_model', None) for hook in runner.hooks]
        copies = [c for c in copies if isinstance(c, BaseAveragedModel)]
        targets = self._weights, optimizers, [c.module for c in copies]
        self.enforcer = MaskEnforcer(masks, *targets)
        self.enforcer.attach()
        runner.logger.info(
            f'DynamicSparsityHook: masks {origin}; {self.enforcer.summary()}'
        )

    # At each iteration ------------------------------------------------------

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Draw the masks of ``init='snip'`` on the first batch."""
        if self.enforcer is None:
            weights = trainable_weights(self._weights)
            batch = data_batch, runner.optim_wrapper
            scores = mean_snip_scores(self._model, *batch, weights)
            self._draw(runner, snip_densities(scores, 1 - self.sparsity))
        near = self.schedule.moves_within(self.step, _GATHER_STEPS)
        self.enforcer.gathering = near and self.growth == 'momentum'

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Count the step, if one was taken, and move the masks if due."""
        enforcer, wrapper = self.enforcer, runner.optim_wrapper
        if not enforcer.stepped:
            several = isinstance(wrapper, OptimWrapperDict)
            if not several and wrapper.should_update():
                enforcer.forget_gradients()
            return
        enforcer.stepped = False
        if enforcer.gathering:
            scaler = getattr(wrapper, 'loss_scaler', None)
            enforcer.fold_gradients(scaler.get_scale() if scaler else 1.0)
        self.step += 1
        if self.schedule.moves_at(self.step):
            rate = self.current_prune_rate
            dropped = enforcer.move(rate, self._generator)
            runner.logger.info(
                f'DynamicSparsityHook: step {self.step}, dropped and grew '
                f'{dropped:.2%} of the non-zero weights (prune rate '
                f'{rate:.4f}); {enforcer.summary()}'
            )

    @property
    def current_prune_rate(self) -> float:
        """Share of the non-zero weights that an update would exchange now."""
        return self.schedule.rate_at(self.step)

    # At saving, and at the end ----------------------------------------------

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Write masks, step, prune rate and generator into the checkpoint."""
        # mmengine calls this on the main process only, so nothing here may
        # wait for other ranks.
        enforcer = self.enforcer
        if enforcer is None:
            return
        kept = self.init == 'zeros'
        checkpoint[STATE_KEY] = pack_state(
            enforcer.masks,
            sparsity=1 - enforcer.density if kept else self.sparsity,
            init=self.init,
            step=self.step,
            prune_rate=self.current_prune_rate,
            generator=self._generator.get_state(),
            momentum={n: m.cpu() for n, m in enforcer.momentum.items()},
        )

    def after_train(self, runner: Runner) -> None:
        """Take the hooks off the parameters and the optimizer."""
        if self.enforcer is not None:
            self.enforcer.detach()


def warn_about_unused_masks(runner: Runner, checkpoint: dict) -> None:
    """Warn where a sparse run is resumed without its hook."""
    if STATE_KEY not in checkpoint:
        return
    if not any(isinstance(hook, DynamicSparsityHook) for hook in runner.hooks):
        runner.logger.warning(
            'The checkpoint comes from a sparse training, and this run has '
            'no DynamicSparsityHook: its zero weights will grow and the '
            'network become dense. Put the hook back into custom_hooks '
            '(update_interval=None keeps the masks as they are)'
        )
