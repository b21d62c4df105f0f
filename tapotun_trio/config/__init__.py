"""The JSON config file: structs, typed model, validation that reports every error at once, diff, schema.

How one entry is loaded. Read `load` first; it calls the other steps in this order:
1. `jsontext.parse`: text to plain objects, and `jsontext.positions`: where in the text each value is.
2. `typecheck.check_object`: checks a plain object against a struct of `structs`; the values that fit become a `Node`.
3. `validate.validate_server` and `validate_client.validate_client`: a `Node` to a `model.ServerConfig` or
   `model.ClientConfig`. Texts go through `parsers` and `urls`; `validate_tls` validates TLS options,
   `validate_process` and `validate_update` the settings of the whole process. Values that two entries must not share
   are registered with `conflicts`.
4. `context.LoadContext` carries the `diagnostics.Findings` of all steps; each step reports errors and continues.
5. `load` returns a `model.Config` if no finding is an error, and all findings in the order of the file.
"""
