"""What a recurrent layer does with data: its gates over time, how long it remembers, what rounding does to it, and what narrow weights bring."""

from fusedrnn.analysis.drifts import Drift, drift
from fusedrnn.analysis.horizons import Horizon, horizon
from fusedrnn.analysis.narrowings import Narrowings, narrowings
from fusedrnn.analysis.traces import Trace, trace

__all__ = [
    "Drift",
    "Horizon",
    "Narrowings",
    "Trace",
    "drift",
    "horizon",
    "narrowings",
    "trace",
]
