"""The client end: a download and an upload to one server, or one WebSocket, each replaced before it ends.

Read `states` first, then `client`, which fires the events. `rotation` runs stream after stream, `streams` is one GET,
PUT or WebSocket, `requests` sends their heads, `transport_choice` decides between HTTP and WebSocket, `parameters`
applies to the host what the server asks for, `ages` learns the timeouts of proxies, `path_watch` notices changes of the
path to the server, `path_mtu` notices that it drops large packets, `failure_log` limits the log.
"""
