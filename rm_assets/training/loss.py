"""The Bradley-Terry loss."""

from torch import Tensor
from torch.nn.functional import logsigmoid


def pair_losses(chosen: Tensor, rejected: Tensor, margin: Tensor, center_rewards: float) -> Tensor:
    """The loss of each pair, float32 [B], from its two scores and its margin, each float32 [B].

    `-log sigmoid(r_chosen - r_rejected - margin)`: Bradley and Terry 1952, with the margin of Llama 2
    (2307.09288, eq. 2). The likelihood sees only differences; `center_rewards *
    (r_chosen + r_rejected)^2` pins the free constant near zero (2312.09244, eq. 2). Worked example:
    scores 1 and 0, margin 0.5 and weight 0.01 give log(1 + exp(-0.5)) + 0.01 = 0.474077 + 0.01.
    """
    return -logsigmoid(chosen - rejected - margin) + center_rewards * (chosen + rejected).square()


def num_right(chosen: Tensor, rejected: Tensor) -> Tensor:
    """How many pairs, of scores float32 [B] each, are ranked right, a tie counting one half: a float64 scalar."""
    return (chosen.detach() - rejected.detach()).sign().add(1).double().sum() / 2
