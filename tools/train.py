"""Train a model of any task: classification, segmentation or detection."""

import argparse

from torch.distributed.elastic.multiprocessing.errors import record

import pelk_mm  # noqa: F401, registers PeLK also for a config that does not
from pelk_mm.apis.launch import prepare_training, train
from pelk_mm.engine.preflight.checks import preflight
from pelk_mm.models.utils import Checkpoints
from pelk_mm.utils.command_line import ConfigOptions, command
from pelk_mm.utils.config import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir',
        help='where to save logs and checkpoints '
        "(default: the config's, else work_dirs/CONFIG)",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='auto|PATH',
        help='go on from the newest checkpoint of the work dir, or from PATH',
    )
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision (GPU)'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by batch size / auto_scale_lr.'
        'base_batch_size',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help='override fields of the config, for example '
        'train_dataloader.batch_size=2',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='set by dist_train.sh and slurm_train.sh',
    )
    # torch.distributed.launch passes it; torchrun sets LOCAL_RANK instead.
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS
    )
    return parser.parse_args()


@record  # for the last line of dist_train.sh
def main() -> None:
    args = parse_args()
    checkpoints = Checkpoints()
    config = prepare_training(
        load_config(args.config, args.cfg_options),
        work_dir=args.work_dir,
        resume=args.resume,
        amp=args.amp,
        auto_scale_lr=args.auto_scale_lr,
        launcher=args.launcher,
        checkpoints=checkpoints,
    )
    preflight(config, checkpoints=checkpoints)
    train(config, checkpoints)


if __name__ == '__main__':
    with command():
        main()
