"""Muon: an optimizer for matrices that makes every step's update nearly orthogonal.

Keller Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024
(https://kellerjordan.github.io/posts/muon/): Nesterov momentum, then the quintic Newton-Schulz iteration with
the coefficients given there, which brings the singular values near 1 (0.7 to 1.2) without computing them.
"""

import math
from collections.abc import Mapping
from typing import Any

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
_SMALLEST_NORM = 1e-7


def orthogonalize(matrix: Any, *, steps: int = NEWTON_SCHULZ_STEPS) -> Any:
    """Return U·S'·Vᵀ of a matrix U·S·Vᵀ, with S' near 1.

    Args:
        matrix: floating-point tensor [rows, columns]; computed in its own type.
        steps: Newton-Schulz iterations.
    """
    import torch

    a, b, c = NEWTON_SCHULZ
    # The smaller product is the one over the shorter side.
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=_SMALLEST_NORM)  # spectral norm at most 1
    for _ in range(steps):
        gram = wide @ wide.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        wide = torch.addmm(wide, polynomial, wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


class Muon:
    """Updates matrices in place; keeps one momentum matrix for each."""

    def __init__(
        self, matrices: Mapping[str, Any], *, momentum: float, weight_decay: float, precision: Any
    ) -> None:
        """Take the matrices.

        Args:
            matrices: name → parameter [rows, columns].
            momentum: share of the earlier gradients.
            weight_decay: decoupled, multiplied with the learning rate.
            precision: the torch type of the Newton-Schulz iteration.
        """
        import torch

        self._matrices, self._momentum, self._weight_decay = dict(matrices), momentum, weight_decay
        self._precision = precision
        self.state: dict[str, Any] = {name: torch.zeros_like(m) for name, m in self._matrices.items()}
        """Name → momentum."""

    def step(self, learning_rate: float) -> None:
        """Update every matrix by its gradient."""
        import torch

        with torch.no_grad():
            for name, matrix in self._matrices.items():
                buffer = self.state[name]
                buffer.lerp_(matrix.grad, 1 - self._momentum)
                update = matrix.grad.lerp(buffer, self._momentum)
                update = orthogonalize(update.to(self._precision)).to(matrix.dtype)
                # A tall matrix gets a larger step, so that its outputs change as much as a wide one's.
                scale = math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
                matrix.mul_(1 - learning_rate * self._weight_decay)
                matrix.sub_(update, alpha=learning_rate * scale)

    def load(self, state: Mapping[str, Any]) -> None:
        """Take the momentum of a checkpoint: name → tensor."""
        for name, buffer in self.state.items():
            buffer.copy_(state[name])
