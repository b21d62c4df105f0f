"""What is known about the other end of a session, for status and logs.

Read `info` first: address, software, times and rates of a peer. `session_log` logs the summary of a session when it
ends. `boottime` is the clock of both. The data path only updates counters; everything here is computed once a second.
"""
