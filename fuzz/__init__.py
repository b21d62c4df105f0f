"""Coverage-guided fuzzing of every parser of foreign bytes, with atheris (libFuzzer). ``make fuzz`` runs it.

A target is a module here with

- ``SEEDS``: inputs that reach deep into the parser, from which the fuzzer starts;
- ``check(data)``: lets a parser loose on ``data``. Whatever it raises is a finding, so it catches what that parser may
  raise (PeerError, InvalidConfig) itself, and asserts what else is promised.

`pump` is not of these: a program in C with libFuzzer's own main.

What a run finds is written to ``build/fuzz/findings``; ``python -m fuzz TARGET FILE`` runs it again.
"""
