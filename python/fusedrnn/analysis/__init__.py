"""What a recurrent layer does with data: its gates over time, how long it remembers, and what rounding does to it."""

from fusedrnn.analysis.drifts import Drift, drift
from fusedrnn.analysis.horizons import Horizon, horizon
from fusedrnn.analysis.traces import Trace, trace

__all__ = ["Drift", "Horizon", "Trace", "drift", "horizon", "trace"]
