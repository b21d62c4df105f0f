"""What shells know of the command line: completions, made from the parser itself. ``usage`` is for the man page too."""
