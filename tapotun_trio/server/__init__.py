"""The server end of the tunnel.

Read `server` first (sessions, authentication, routing from the device), then `session` (one client) and `handlers` (one
GET, PUT or WebSocket from its head to its end). `http.virtual_hosts` accepts the connections and reads request heads.
"""
