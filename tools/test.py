"""Evaluate a checkpoint of any task with the library's own metrics."""

import argparse

import share_cores  # noqa: F401  # isort: skip (before torch)

from mmengine.dist import is_main_process
from torch.distributed.elastic.multiprocessing.errors import record

import pelk_mm  # noqa: F401, registers PeLK also for a config that does not
from pelk_mm.apis.launch import prepare_testing, test
from pelk_mm.apis.test_options import with_units
from pelk_mm.engine.preflight.checks import preflight
from pelk_mm.models.utils import Checkpoints
from pelk_mm.utils.command_line import add_run_options, command
from pelk_mm.utils.config import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='where to log')
    text = 'draw each picture with its prediction as DIR/NAME.png'
    parser.add_argument('--show-dir', metavar='DIR', help=text)
    text = 'save the raw predictions'
    parser.add_argument('--out', metavar='FILE.pkl', help=text)
    text = "test-time augmentation: the config's tta_pipeline and tta_model, "
    text += 'or the picture and its mirror image'
    parser.add_argument('--tta', action='store_true', help=text)
    add_run_options(parser)
    return parser.parse_args()


@record  # for the last line of dist_test.sh
def main() -> None:
    args = parse_args()
    checkpoints = Checkpoints()
    config = prepare_testing(
        load_config(args.config, args.cfg_options),
        args.checkpoint,
        work_dir=args.work_dir,
        show_dir=args.show_dir,
        out=args.out,
        tta=args.tta,
        launcher=args.launcher,
        checkpoints=checkpoints,
    )
    preflight(config, training=False, checkpoints=checkpoints)
    metrics = test(config, checkpoints)
    if is_main_process():
        print('\n'.join(with_units(metrics)))


if __name__ == '__main__':
    with command():
        main()
