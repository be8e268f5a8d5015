"""The clock of all measurements."""

from time import thread_time

__all__ = ["clock"]

#: The CPU time of the measuring thread. Everything measured here computes in that one thread and never waits, so on
#: an idle machine this is the time on the wall; on a busy one, the time for which another program had the core, often
#: several times that of a round, is not in it. Reading it costs a system call: less than a thousandth of a round.
clock = thread_time
