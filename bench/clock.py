"""The clocks of all measurements."""

from time import perf_counter, thread_time

__all__ = ["clock", "wall"]

#: The CPU time of the measuring thread. What is measured with one thread computes in that one and never waits, so on
#: an idle machine this is the time on the wall; on a busy one, the time for which another program had the core, often
#: several times that of a round, is not in it. Reading it costs a system call: less than a thousandth of a round.
clock = thread_time

#: The time on the wall, for what computes in several threads: the work of the others is not in the time of one.
wall = perf_counter
