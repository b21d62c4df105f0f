"""The wire formats as pure bytes. Nothing here knows a socket, a clock, or which side of the tunnel it is on.

Read `frames` first: everything in the tunnel is a frame. Frames travel in a `body` (a chunked HTTP body) or in
WebSocket messages (`websocket`). `control` and `params` are the control frames of extended peers, `vnet` is the header
of each packet, `tunconf` is what a base server sends its client, `proxyprotocol` what a proxy says of a connection.
`uniform` compares many frames at once.
"""
