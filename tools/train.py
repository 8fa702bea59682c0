"""Train a model of any task: classification, segmentation or detection."""

import argparse

import share_cores  # noqa: F401  # isort: skip (before torch)

from torch.distributed.elastic.multiprocessing.errors import record

import pelk_mm  # noqa: F401, registers PeLK also for a config that does not
from pelk_mm.apis.launch import prepare_training, train
from pelk_mm.engine.preflight.checks import preflight
from pelk_mm.models.utils import Checkpoints
from pelk_mm.utils.command_line import add_run_options, command
from pelk_mm.utils.config import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    text = "for logs and checkpoints (default: the config's, or "
    parser.add_argument('--work-dir', help=text + 'work_dirs/CONFIG)')
    resume = dict(nargs='?', const='auto', metavar='auto|PATH')
    text = 'go on from the newest checkpoint of the work dir, or from PATH'
    parser.add_argument('--resume', **resume, help=text)
    text = 'automatic mixed precision (GPU)'
    parser.add_argument('--amp', action='store_true', help=text)
    text = 'scale the learning rate by batch size / its base_batch_size'
    parser.add_argument('--auto-scale-lr', action='store_true', help=text)
    text = 'skip the rehearsal, a trial of the loop on a few real batches'
    parser.add_argument('--no-rehearsal', action='store_true', help=text)
    add_run_options(parser)
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
    if args.no_rehearsal:
        config.rehearse = False
    preflight(config, checkpoints=checkpoints)
    train(config, checkpoints)


if __name__ == '__main__':
    with command():
        main()
