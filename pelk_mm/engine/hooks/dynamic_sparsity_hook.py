"""Dynamic sparsity: when masks are drawn, enforced, moved and saved."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import BaseAveragedModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from ...ops.checks import check_bool, check_choice, check_integer, check_number
from ..sparsity import masks as policy
from ..sparsity.enforcer import MaskEnforcer
from ..sparsity.snip import probe_snip_scores
from ..sparsity.state import (
    STATE_KEY,
    pack_state,
    pretrained_masks,
    unpack_masks,
)

_INITS = ('snip', 'erk', 'uniform', 'zeros')
_GROWTHS = ('random', 'momentum')
# growth='momentum' averages the dense gradient over this many steps before
# the masks move.
_GATHER_STEPS = 10
# torch's generators take no larger one.
_LARGEST_SEED = 2**63 - 1
# Zeros below this share are chance (underflow, a zero-initialised layer).
_SPARSE_SHARE = 1e-3


@HOOKS.register_module()
class DynamicSparsityHook(Hook):
    """Train a network sparse from the start, with a moving pattern.

    A fixed share of the 2-D and 4-D weights is zero at all times. Every
    ``update_interval`` optimizer steps the live weights of smallest magnitude
    are dropped in each layer and as many dead ones grown, from zero; the
    share decays from ``prune_rate`` to ``min_prune_rate`` along a cosine.
    This is the scheme of `SLaK <https://arxiv.org/abs/2207.03620>`_ with one
    difference: a weight just dropped is no candidate for growth in the same
    update.

    How the zeros are kept: the gradient of a dead weight is zeroed while
    going backward, so that neither gradient clipping nor the moments see it
    nor can its overflow make a loss scaler skip the step; after every
    optimizer step dead weights are set to zero. Weights that are dropped lose
    their moments, and averaged models (``EMAHook``) lose their copy of them.
    All ranks hold the same masks, which is checked by hash.

    Masks, step, prune rate and the generator are kept in the checkpoint under
    ``'dynamic_sparsity'``: a resumed run goes on exactly as if it had not
    been interrupted.

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
        prune_rate (float): Share of each layer's live weights exchanged by
            an update at the start. Default: 0.5.
        min_prune_rate (float): The share at ``end``. Default: 0.005.
        update_interval (int, optional): Optimizer steps between updates, not
            counting those a loss scaler skips; None keeps the masks as they
            are. Default: 2000.
        growth (str): Which dead weights grow. 'random' draws them evenly;
            'momentum' takes those with the largest average of the dense
            gradient (factor 0.9) over the last 10 steps before the update,
            at the price of one all-reduce of the gradients in each of these
            steps. As dead weights feed no moments, the optimizer's own
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
            raise ValueError(
                'sparsity must be below 1, got 1: no weight would be left'
            )
        self.init = check_choice('init', init, _INITS)
        self.prune_rate = check_number('prune_rate', prune_rate, 0, 1)
        self.min_prune_rate = check_number(
            'min_prune_rate', min_prune_rate, 0, 1
        )
        if self.min_prune_rate > self.prune_rate:
            raise ValueError(
                f'min_prune_rate={min_prune_rate} exceeds prune_rate='
                f'{prune_rate}, from which the cosine comes down to it'
            )
        self.update_interval = _count('update_interval', update_interval)
        self.growth = check_choice('growth', growth, _GROWTHS)
        self.end = _count('end', end)
        self.include = _patterns('include', include)
        if not self.include:
            raise ValueError(
                'include names no pattern, so that nothing '
                "would be masked; use ['.'] for every weight"
            )
        self.exclude = _patterns('exclude', exclude)
        self.seed = check_integer('seed', seed, 0, _LARGEST_SEED)
        self.redraw = check_bool('redraw', redraw)

        self.step = 0
        self.enforcer: MaskEnforcer | None = None
        self._generator = torch.Generator().manual_seed(self.seed)
        self._model: nn.Module | None = None
        self._weights: dict[str, nn.Parameter] = {}
        self._end = 1
        self._loaded: dict | None = None
        self._has_loaded = self._has_resumed = False

    # When: mmengine's stages, in the order of a run ------------------------

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take the masks out of the checkpoint; they apply in before_train.

        Args:
            runner (Runner): The runner.
            checkpoint (dict): What was read from the file.
        """
        self._has_loaded = True
        self._has_resumed = runner._resume
        self._loaded = checkpoint.get(STATE_KEY)

    def before_train(self, runner: Runner) -> None:
        """Restore, read or draw the masks and start to enforce them.

        ``init='snip'`` waits for the first batch.

        Args:
            runner (Runner): The runner, its weights and optimizer loaded.

        Raises:
            RuntimeError: If parameters or optimizer are sharded.
            ValueError: If masks cannot be had as configured (see the class),
                or there are two such hooks.
        """
        if sum(isinstance(h, DynamicSparsityHook) for h in runner.hooks) > 1:
            raise ValueError(
                'there is more than one DynamicSparsityHook, and a checkpoint '
                'holds the masks of one; use include and exclude of a single '
                'hook'
            )
        model = runner.model
        _refuse_sharding(model)
        if is_model_wrapper(model):
            model = model.module
        again = self._model is model and self.enforcer is not None
        self._model = model
        self._weights = policy.select_weights(
            model, self.include, self.exclude
        )
        accumulation = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        self._end = self.end or -(-runner.max_iters // accumulation)

        if again:
            self._keep(runner, self.enforcer.masks, 'kept from before')
            return
        self.enforcer, self.step = None, 0
        if self._has_resumed:
            self._resume(runner, runner.iter // accumulation)
        elif self.init == 'zeros':
            self._read(runner)
        elif self._loaded is None or self.redraw:
            self._draw(runner)
        else:
            raise ValueError(
                'the loaded checkpoint is sparse and holds its masks; '
                f'init={self.init!r} would draw others and zero '
                f'{self.sparsity:.0%} of its trained weights. Use '
                "init='zeros' to keep its masks, or redraw=True if new ones "
                'are meant'
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Draw the masks of ``init='snip'`` on the first batch.

        Args:
            runner (Runner): The runner.
            batch_idx (int): Index of the batch.
            data_batch (Any): The batch, which is then trained on as usual.
        """
        if self.enforcer is None:
            scores = self._snip_scores(runner, data_batch)
            self._draw_from(
                runner, policy.snip_densities(scores, 1 - self.sparsity)
            )
        self.enforcer.gathering = self._is_gathering()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Count the step, if one was taken, and move the masks if due.

        Args:
            runner (Runner): The runner.
            batch_idx (int): Index of the batch.
            data_batch (Any): The batch.
            outputs (dict, optional): What ``train_step`` returned.
        """
        enforcer = self.enforcer
        if not enforcer.stepped:
            if _ends_accumulation(runner.optim_wrapper):
                enforcer.forget_gradients()
            return
        enforcer.stepped = False
        if enforcer.gathering:
            scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
            enforcer.fold_gradients(scaler.get_scale() if scaler else 1.0)
        self.step += 1
        if self._is_update(self.step):
            rate = self.current_prune_rate
            dropped = enforcer.move(rate, self._generator)
            runner.logger.info(
                f'DynamicSparsityHook: step {self.step}, dropped and grew '
                f'{dropped:.2%} of the live weights (prune rate {rate:.4f}); '
                f'{enforcer.summary()}'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Write masks, step, prune rate and generator into the checkpoint.

        mmengine calls this on the main process only, so nothing here may
        wait for other ranks.

        Args:
            runner (Runner): The runner.
            checkpoint (dict): What is about to be saved.
        """
        if self.enforcer is None:
            return
        checkpoint[STATE_KEY] = pack_state(
            self.enforcer.masks,
            sparsity=(
                1 - self.enforcer.density
                if self.init == 'zeros'
                else self.sparsity
            ),
            init=self.init,
            step=self.step,
            prune_rate=self.current_prune_rate,
            generator=self._generator.get_state(),
            momentum={n: m.cpu() for n, m in self.enforcer.momentum.items()},
        )

    def after_train(self, runner: Runner) -> None:
        """Take the hooks off the parameters and the optimizer.

        Args:
            runner (Runner): The runner.
        """
        if self.enforcer is not None:
            self.enforcer.detach()

    @property
    def current_prune_rate(self) -> float:
        """Share of the live weights that an update would exchange now."""
        return policy.prune_rate_at(
            self.step, self._end, self.prune_rate, self.min_prune_rate
        )

    def _is_update(self, step: int) -> bool:
        # Not at the very end: what is dropped there nothing makes up for.
        return (
            self.update_interval is not None
            and 0 < step < self._end
            and step % self.update_interval == 0
        )

    def _is_gathering(self) -> bool:
        """Whether the step under way is among the last before an update."""
        if self.growth != 'momentum' or self.update_interval is None:
            return False
        ahead = self.update_interval - self.step % self.update_interval
        return ahead <= _GATHER_STEPS and self._is_update(self.step + ahead)

    # Where masks come from --------------------------------------------------

    def _draw(self, runner: Runner) -> None:
        """Draw masks by shape now, or by SNIP when a batch is there."""
        self._generator.manual_seed(self.seed)
        if self.init == 'snip':
            if isinstance(runner.optim_wrapper, OptimWrapperDict):
                raise ValueError(
                    "init='snip' needs one loss and one optimizer, got an "
                    "OptimWrapperDict; use init='erk' or 'uniform'"
                )
            return
        shapes = {n: tuple(p.shape) for n, p in self._trainable().items()}
        densities = getattr(policy, f'{self.init}_densities')
        self._draw_from(runner, densities(shapes, 1 - self.sparsity))

    def _draw_from(
        self, runner: Runner, densities: Mapping[str, float]
    ) -> None:
        masks = {}
        for name, density in densities.items():
            weight = self._weights[name]
            generator = policy.spawn_generator(self._generator, weight.device)
            count = policy.live_count(density, weight.numel())
            masks[name] = policy.draw_mask(weight.shape, count, generator)
        dense = len(self._weights) - len(densities)
        note = f', {dense} frozen weights left dense' if dense else ''
        self._keep(runner, masks, f'drawn by {self.init}{note}')

    def _trainable(self) -> dict[str, nn.Parameter]:
        trainable = {n: p for n, p in self._weights.items() if p.requires_grad}
        if not trainable:
            raise ValueError(
                f'all {len(self._weights)} weights matching include='
                f'{list(self.include)} are frozen, so that none can be '
                'trained sparse; widen include or freeze less'
            )
        return trainable

    def _snip_scores(
        self, runner: Runner, data_batch: Any
    ) -> dict[str, Tensor]:
        """Scores on this rank's batch, averaged over ranks."""
        weights = self._trainable()
        # fp16 gradients need a large factor against underflow, if none of
        # them overflows by it; scores are compared, so it need not be undone.
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        factors = (
            (2.0**16, 2.0**11, 2.0**6, 1.0) if scaler is not None else (1.0,)
        )
        for factor in factors:
            scores = probe_snip_scores(
                self._model, data_batch, runner.optim_wrapper, weights, factor
            )
            for score in scores.values():
                all_reduce(score, 'mean')
            if all(bool(s.isfinite().all()) for s in scores.values()):
                break
        return scores

    def _read(self, runner: Runner) -> None:
        """init='zeros': masks of a sparse checkpoint, or its zeros."""
        if self._loaded is not None:
            saved = unpack_masks(self._loaded)
        elif self._has_loaded:
            saved = {}
        else:
            saved = pretrained_masks(self._model)
        if saved:
            masks = self._fit(
                {n: m for n, m in saved.items() if n in self._weights}
            )
            if not masks:
                raise ValueError(
                    "none of the checkpoint's masks is for a weight that "
                    f'include={list(self.include)} and exclude='
                    f'{list(self.exclude)} select; it has masks for '
                    f'{_few(saved)}'
                )
            self._check_dead(masks)
            origin = 'kept from the checkpoint'
        else:
            masks = {
                n: policy.mask_from_zeros(p) for n, p in self._weights.items()
            }
            # A layer of nothing but zeros is one that starts there, not a
            # sparse one; masked, it would never start.
            for name in [n for n, mask in masks.items() if not mask.any()]:
                runner.logger.warning(
                    f'{name} is zero throughout and is left without a mask'
                )
                del masks[name]
            origin = "read from the checkpoint's zeros"
        dead = sum(int((~mask).sum()) for mask in masks.values())
        total = sum(mask.numel() for mask in masks.values())
        if dead < max(1, _SPARSE_SHARE * total):
            raise ValueError(
                f"init='zeros' found nothing sparse: {dead} of {total} "
                'weights are zero. Load a sparse checkpoint (load_from, or '
                "init_cfg of type 'Pretrained'), use another init, or leave "
                'the hook out'
            )
        self._keep(runner, masks, origin)

    def _resume(self, runner: Runner, step: int) -> None:
        """Go on with the checkpoint's masks, or say why that cannot be."""
        reason = self._why_not_resume()
        if reason is None:
            self._restore(runner)
            return
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
        self.step = step if self._loaded is None else self._loaded['step']
        if self.init == 'zeros':
            self._loaded = None
            self._read(runner)
        else:
            self._draw(runner)

    def _why_not_resume(self) -> str | None:
        if self._loaded is None:
            return 'the checkpoint holds no masks, its network is dense'
        before = self._loaded['sparsity']
        if self.init != 'zeros' and before != self.sparsity:
            return (
                f'the checkpoint was trained with sparsity={before} and '
                f'this run asks for {self.sparsity}'
            )
        masked = set(self._loaded['masks'])
        known = dict(self._model.named_parameters())
        unknown = [n for n in masked if n in known and n not in self._weights]
        if unknown:
            return (
                'the checkpoint masks weights that include and exclude '
                f'no longer select: {_few(unknown)}'
            )
        new = [
            n
            for n, p in self._weights.items()
            if p.requires_grad and n not in masked
        ]
        if new and self.init != 'zeros':
            return (
                'this run masks weights that the checkpoint trained '
                f'dense: {_few(new)}'
            )
        return None

    def _restore(self, runner: Runner) -> None:
        state = self._loaded
        masks = self._fit(unpack_masks(state))
        self._check_dead(masks)
        self.step = int(state['step'])
        self._generator.set_state(state['generator'].cpu())
        if abs(state['prune_rate'] - self.current_prune_rate) > 1e-9:
            runner.logger.warning(
                'DynamicSparsityHook: the schedule changed, the prune rate '
                f'at step {self.step} goes from {state["prune_rate"]:.4f} to '
                f'{self.current_prune_rate:.4f}'
            )
        self._keep(runner, masks, f'resumed at step {self.step}')
        self.enforcer.momentum = {
            name: average.to(self._weights[name].device)
            for name, average in state['momentum'].items()
        }

    def _fit(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks on their weights' devices; raises where one does not fit."""
        misfits = [
            f'{name} {list(mask.shape)} against '
            + (
                str(list(self._weights[name].shape))
                if name in self._weights
                else 'no such weight'
            )
            for name, mask in masks.items()
            if name not in self._weights
            or self._weights[name].shape != mask.shape
        ]
        if misfits:
            raise ValueError(
                f"{len(misfits)} of the checkpoint's {len(masks)} masks do "
                f'not fit the model (mask against weight): {_few(misfits)}. '
                'Build the model as it was trained (arch, kernel sizes, not '
                'switched to deploy)'
            )
        return {n: m.to(self._weights[n].device) for n, m in masks.items()}

    def _check_dead(self, masks: Mapping[str, Tensor]) -> None:
        """Weights that a saved mask calls dead must have been saved as 0."""
        alive = {
            name: count
            for name, mask in masks.items()
            if (
                count := int(
                    self._weights[name].detach()[~mask].count_nonzero()
                )
            )
        }
        if alive:
            raise ValueError(
                f'{sum(alive.values())} weights in {len(alive)} layers are '
                "not zero where the checkpoint's masks say so: "
                f'{_few(alive)}. Its weights and masks do not belong '
                'together, or not all of its weights were loaded'
            )

    def _keep(
        self, runner: Runner, masks: Mapping[str, Tensor], origin: str
    ) -> None:
        """Hand the masks to a enforcer, which enforces them from now on."""
        self.enforcer = MaskEnforcer(
            masks,
            self._weights,
            _optimizers(runner),
            list(_averaged_models(runner)),
        )
        self.enforcer.attach()
        runner.logger.info(
            f'DynamicSparsityHook: masks {origin}; {self.enforcer.summary()}'
        )


def warn_about_unused_masks(runner: Runner, checkpoint: dict) -> None:
    """Warn where a sparse run is resumed without its hook.

    A hook that is not there cannot complain, so one that always is has to
    call this from its ``after_load_checkpoint``.

    Args:
        runner (Runner): The runner.
        checkpoint (dict): What was read from the file.
    """
    if (
        STATE_KEY in checkpoint
        and runner._resume
        and not any(isinstance(h, DynamicSparsityHook) for h in runner.hooks)
    ):
        runner.logger.warning(
            'The checkpoint comes from a sparse training, and this run has '
            'no DynamicSparsityHook: its zero weights will grow and the '
            'network become dense. Put the hook back into custom_hooks '
            '(update_interval=None keeps the masks as they are)'
        )


# Checks of arguments ---------------------------------------------------------


def _count(name: str, value: object) -> int | None:
    return None if value is None else check_integer(name, value, 1)


def _patterns(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(value, (str, list, tuple)):
        raise TypeError(
            f'{name} must be a regular expression or a list of '
            f'them, got {value!r} of type {type(value).__name__}'
        )
    patterns = (value,) if isinstance(value, str) else tuple(value)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f'{name} must hold regular expressions, got '
                f'{pattern!r} of type {type(pattern).__name__}'
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f'{name} has {pattern!r}, which is no regular '
                f'expression: {error}'
            ) from error
    return patterns


# Reading the run ------------------------------------------------------------


def _few(items: Sequence | Mapping) -> str:
    items = (
        [f'{k} ({v})' for k, v in items.items()]
        if isinstance(items, Mapping)
        and all(isinstance(v, int) for v in items.values())
        else list(items)
    )
    more = f' and {len(items) - 5} more' if len(items) > 5 else ''
    return ', '.join(items[:5]) + more


def _refuse_sharding(model: object) -> None:
    """Raise where a parameter here is only a piece of the weight."""
    if not isinstance(model, nn.Module):
        raise RuntimeError(
            'DynamicSparsityHook needs the parameters themselves and cannot '
            f'work through {type(model).__name__}; train with '
            'DistributedDataParallel'
        )
    # By name, as the classes are not in every version of torch.
    for things in (model.modules, model.parameters):
        sharded = {c.__name__ for x in things() for c in type(x).__mro__} & {
            'FullyShardedDataParallel',
            'FSDPModule',
            'DTensor',
        }
        if sharded:
            raise RuntimeError(
                'DynamicSparsityHook found sharded parameters '
                f'({min(sharded)}). Magnitudes are ranked and densities kept '
                'per whole weight, which a shard does not show; train with '
                'DistributedDataParallel instead'
            )


def _optimizers(runner: Runner) -> list[Optimizer]:
    wrapper = runner.optim_wrapper
    wrappers = (
        list(wrapper.values())
        if isinstance(wrapper, OptimWrapperDict)
        else [wrapper]
    )
    optimizers = [w.optimizer for w in wrappers]
    for optimizer in optimizers:
        names = {cls.__name__ for cls in type(optimizer).__mro__}
        if (
            not isinstance(optimizer, Optimizer)
            or 'ZeroRedundancyOptimizer' in names
        ):
            raise RuntimeError(
                'DynamicSparsityHook cannot reach the moments kept by '
                f'{type(optimizer).__name__}; use an optimizer of '
                'torch.optim, whole on every rank'
            )
    return optimizers


def _ends_accumulation(wrapper: OptimWrapper | OptimWrapperDict) -> bool:
    return (
        not isinstance(wrapper, OptimWrapperDict) and wrapper.should_update()
    )


def _averaged_models(runner: Runner) -> Iterator[nn.Module]:
    for hook in runner.hooks:
        averaged = getattr(hook, 'ema_model', None)
        if isinstance(averaged, BaseAveragedModel):
            yield averaged.module
