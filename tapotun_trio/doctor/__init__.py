"""`tapotun doctor`: what of this machine would stand in a tunnel's way, and what to do about it.

`machine` looks (it changes nothing), `checks` judges what it saw (pure), `run` prints.
"""
