"""What is known of the other end of a session, for status and logs.

`info` has addresses, rates and times; `session_log` writes the line that sums a session up; `boottime` is the clock
that both use. The data path updates counters only; everything here is computed once a second.
"""
