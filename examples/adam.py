"""Adam in NumPy, for the training examples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


class Adam:
    """Adam (Kingma & Ba 2015) with the norm of all gradients clipped (Pascanu et al. 2013).

    Parameters
    ----------
    size
        N, the number of weights.
    clip
        The largest norm of the gradients.
    decay
        How much of each running mean is kept in a step: of the gradients, and of their squares.
    """

    def __init__(
        self, size: int, clip: float = 1.0, decay: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        self.clip, self.decay, self.steps = clip, decay, 0
        self.mean: np.ndarray = np.zeros(size, np.float32)
        self.square: np.ndarray = np.zeros(size, np.float32)

    def step(self, weights: Arrays, gradients: Arrays, rate: float) -> dict[str, np.ndarray]:
        """New weights, by the names of the old ones; all are float32."""
        gradient = np.concatenate([gradients[name].ravel() for name in weights])
        gradient *= self.clip / max(float(np.linalg.norm(gradient)), self.clip)
        a, b = self.decay
        self.steps += 1
        self.mean = a * self.mean + (1 - a) * gradient
        self.square = b * self.square + (1 - b) * gradient**2
        unbiased = (1 - b**self.steps) ** 0.5 / (1 - a**self.steps)
        change = (rate * unbiased) * self.mean / (np.sqrt(self.square) + 1e-8)
        new = np.concatenate([weight.ravel() for weight in weights.values()]) - change
        parts = np.split(new, np.cumsum([weight.size for weight in weights.values()])[:-1])
        named = zip(weights.items(), parts, strict=True)
        return {name: part.reshape(weight.shape) for (name, weight), part in named}
