"""Small trainings on digit scenes, one for each task: what they share."""

from .run import Result, run_demo
from .tasks import TASKS, Task

__all__ = ['TASKS', 'Result', 'Task', 'run_demo']
