"""tapotun-trio: IP packets between Linux machines over two long-lived HTTP streams."""

__version__ = "0.2.0"

AGENT = f"tapotun-trio/{__version__}"
"""The name and version of this software, as it sends them to an extended peer."""
