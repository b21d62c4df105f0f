"""Hand-rolled streaming HTTP/1.1: h11 reads and writes heads, the endless bodies are ours."""
