"""`tapotun doctor`: checks this machine for anything that would prevent a tunnel from working, with remedies.

`machine` collects the facts (it changes nothing), `checks` evaluates them (pure), `run` prints.
"""
