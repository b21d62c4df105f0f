"""Streaming HTTP/1.1: h11 parses and writes heads, the endless bodies are our own.

Read `virtual_hosts` and `server` first for the server's side, `client` for the client's, then `writer` (the sending
half of a stream). `acceptor` is the accept loop; `heads`, `forwarded` and most of `connect` are sans-IO.
"""
