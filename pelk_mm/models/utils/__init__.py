from .activation_checkpoint import checkpoint_keeping_stats
from .checkpoint import check_state_dict, load_pretrained

__all__ = ['check_state_dict', 'checkpoint_keeping_stats', 'load_pretrained']
