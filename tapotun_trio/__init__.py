"""tapotun-trio: IP packets between Linux machines over two long-lived HTTP streams."""

__version__ = "0.1.0"
