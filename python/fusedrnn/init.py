"""Initial weights for a wanted memory: ``fr.LSTM(..., init=[fr.init.orthogonal(), fr.init.chrono(2, 500)])``.

A layer's weights are first drawn as always, uniform on ±1/sqrt(H); each initialiser then replaces some of them, in the
order given. The same seed gives the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fusedrnn.architecture import Architecture, is_bool
from fusedrnn.arrays import Array
from fusedrnn.errors import UnsupportedError

__all__ = ["Initialiser", "chrono", "forget_bias", "orthogonal"]


class Initialiser(Protocol):
    """What replaces some of the drawn weights."""

    def __call__(
        self, architecture: Architecture, weights: dict[str, Array], random: np.random.Generator
    ) -> None:
        """Write to some of the canonical weights, by name."""


@dataclass(frozen=True)
class _Biases:
    """Biases of the gate that retains, drawn for each unit; and of an LSTM's input gate, their negative if wanted."""

    name: str
    low: float
    high: float
    in_steps: bool

    def __call__(
        self, architecture: Architecture, weights: dict[str, Array], random: np.random.Generator
    ) -> None:
        """See :class:`Initialiser`."""
        a = architecture
        retains = a.table.retaining_gate
        if retains is None:
            raise UnsupportedError(
                f"init.{self.name} is for cells with a gate that retains (LSTM, GRU), not for {a.table.title}"
            )
        if a.bias == "none":
            raise UnsupportedError(f"init.{self.name} sets biases, and bias is False")
        if self.in_steps and a.activation_of("gate").name != "sigmoid":
            raise UnsupportedError(
                f"init.{self.name} is for sigmoid gates, and gate_activation is {a.gate_activation!r}"
            )
        for vectors in _bias_vectors(a, weights):
            values = random.uniform(self.low, self.high, a.hidden_size)
            if self.in_steps:
                values = np.log(values)
            _set(a, vectors, retains, values)
            if self.in_steps and any(gate.name == "i" for gate in a.table.gates):
                _set(a, vectors, "i", -values)


def _bias_vectors(a: Architecture, weights: dict[str, Array]) -> Iterator[list[Array]]:
    """The bias vectors of each layer and direction that are added up: one or two."""
    vectors: dict[tuple[int, int], list[Array]] = {}
    for weight in a.weights():
        if (
            weight.kind == "bias"
            and len(weights[weight.name]) == len(a.table.gates) * a.hidden_size
        ):
            vectors.setdefault((weight.layer, weight.direction), []).append(weights[weight.name])
    yield from vectors.values()


def _set(a: Architecture, vectors: list[Array], gate: str, values: npt.NDArray[np.float64]) -> None:
    """Let the biases of a gate add up to some values."""
    first = [each.name for each in a.table.gates].index(gate) * a.hidden_size
    for vector, part in zip(vectors, (values, np.zeros_like(values))):
        vector[first : first + a.hidden_size] = part


def chrono(T_min: float, T_max: float) -> Initialiser:
    """Biases for memories of T_min to T_max steps, as Tallec and Ollivier 2018 have them.

    A gate with the bias log(T - 1) is at 1 - 1/T where nothing else is added, and forgets with a time constant of T
    steps: about 1/e is left after T of them, and half after 0.69 T.

    Parameters
    ----------
    T_min, T_max
        In steps, 1 < T_min <= T_max. Each unit's T - 1 is drawn uniformly; the paper has T_min = 2, and for T_max the
        longest distance over which the data depend on each other.

    Returns
    -------
    Initialiser
        Of an LSTM: b_f = log(u), b_i = -b_f, with u uniform on [T_min - 1, T_max - 1]. Coupled: b_f alone, since
        i = 1 - f. Of a GRU, whose z is what the paper calls 1 minus its update gate: b_z = log(u).

    Raises
    ------
    ValueError
        If T_min and T_max are not so.
    UnsupportedError
        From the constructor: for a cell without such a gate, without biases, or with other gates than sigmoid.

    References
    ----------
    Tallec, Ollivier: Can recurrent neural networks warp time? ICLR 2018, arXiv:1804.11188.

    Examples
    --------
    >>> import fusedrnn as fr
    >>> lstm = fr.LSTM(3, 5, seed=0, init=fr.init.chrono(500, 500))
    >>> float(lstm.weights["bias_ih_l0"][5].round(3))
    6.213
    """
    low, high = _number("T_min", T_min), _number("T_max", T_max)
    if not 1 < low <= high < inf:
        raise ValueError(f"must be 1 < T_min <= T_max, got {T_min} and {T_max}")
    return _Biases("chrono", low - 1, high - 1, in_steps=True)


def forget_bias(value: float = 1.0) -> Initialiser:
    """A forget gate (a GRU's z) whose biases add up to a value: 1, after Jozefowicz, Zaremba and Sutskever 2015.

    Parameters
    ----------
    value
        Finite. 1 leaves a sigmoid gate at 0.73, where nothing else is added.

    Raises
    ------
    ValueError
        If the value is not finite.
    UnsupportedError
        From the constructor: for a cell without such a gate, or without biases.

    References
    ----------
    Jozefowicz, Zaremba, Sutskever: An empirical exploration of recurrent network architectures. ICML 2015. The advice is
    from Gers, Schmidhuber, Cummins: Learning to forget. Neural Computation 12, 2000.
    """
    number = _number("value", value)
    if not abs(number) < inf:
        raise ValueError(f"value must be finite, got {value}")
    return _Biases("forget_bias", number, number, in_steps=False)


@dataclass(frozen=True)
class _Orthogonal:
    """See :func:`orthogonal`."""

    gain: float

    def __call__(
        self, architecture: Architecture, weights: dict[str, Array], random: np.random.Generator
    ) -> None:
        """See :class:`Initialiser`."""
        a = architecture
        if a.periods:
            raise UnsupportedError(
                "init.orthogonal is not for a Clockwork RNN, whose recurrent matrix has blocks of zeros"
            )
        for weight in a.weights():
            if weight.kind == "recurrent":
                for gate in range(len(a.table.gates)):
                    rows = slice(gate * a.hidden_size, (gate + 1) * a.hidden_size)
                    drawn = random.standard_normal((a.hidden_size, a.fed_back))
                    q, r = np.linalg.qr(drawn)
                    weights[weight.name][rows] = self.gain * q * np.sign(np.diag(r))


def orthogonal(gain: float = 1.0) -> Initialiser:
    """Recurrent matrices of each gate whose columns are orthogonal: they neither stretch nor shrink what they are given.

    Parameters
    ----------
    gain
        What all singular values are, above 0.

    Returns
    -------
    Initialiser
        Each gate's block of R, (H, R), is drawn uniformly from all such matrices.

    Raises
    ------
    ValueError
        If the gain is not so.
    UnsupportedError
        From the constructor: for a Clockwork RNN.

    References
    ----------
    Saxe, McClelland, Ganguli: Exact solutions to the nonlinear dynamics of learning in deep linear neural networks. ICLR
    2014, arXiv:1312.6120. Le, Jaitly, Hinton (2015, arXiv:1504.00941) take the identity, which is one of them.
    """
    number = _number("gain", gain)
    if not 0 < number < inf:
        raise ValueError(f"gain must be above 0 and finite, got {gain}")
    return _Orthogonal(number)


def _number(name: str, value: float) -> float:
    if is_bool(value) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    return float(value)
