"""The JSON config file: its structs, loading with every error at once.

A file goes through `jsontext` (text to plain objects), `decode` (plain objects against the structs of `raw`),
`server_entry` and `client_entry` (texts to values by `fields` and `url`, clashes by `checks`) and comes out of
`load` as a `model.Config`, or as a list of `findings`.
"""
