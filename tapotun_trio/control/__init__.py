"""A running process answers questions and takes orders of its own user, over a Unix socket."""
