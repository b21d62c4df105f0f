"""The client end: two streams to one server, replaced before they end and repaired when they break.

Read `client` first: the states of a client and what changes them. `rotation` keeps a stream going, `streams` is one
GET, PUT or WebSocket, `requests` is what is sent for them, `transport_choice` decides between HTTP and WebSocket.
"""
