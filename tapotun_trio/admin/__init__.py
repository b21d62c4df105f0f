"""What an operator watches and does over HTTP: health, metrics, panel. Only where the config has an `admin`."""
