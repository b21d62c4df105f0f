"""The server end: which client a request is from, and the streams of each client.

Read `server` first (routing table, authentication), then `session` (one client) and `handlers` (one GET, PUT or
WebSocket from its head to its end). Connections and request heads are the business of `http.acceptor`.
"""
