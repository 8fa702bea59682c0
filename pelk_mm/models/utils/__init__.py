from .checkpoint import check_state_dict, load_pretrained

__all__ = ['check_state_dict', 'load_pretrained']
