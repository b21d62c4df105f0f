"""Health, metrics, panel and API for the operator over HTTP. Only if the config has an `admin`; start at `api`."""
