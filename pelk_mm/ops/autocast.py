"""What autocast makes of an operand."""

import torch
from torch import Tensor

#: Where the operator follows autocast.
DEVICES = ('cpu', 'cuda')


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives a convolution's operand, None without.

    float64 is left as it is, as by torch's own convolutions.
    """
    device = tensor.device.type
    # Devices such as 'meta' have no autocast to ask for.
    if (
        tensor.dtype == torch.float64
        or device not in DEVICES
        or not torch.is_autocast_enabled(device)
    ):
        return None
    return torch.get_autocast_dtype(device)
