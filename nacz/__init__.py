"""nacz: a neural lossless compressor whose archives decode bit for bit on any machine."""

from nacz._version import __version__

__all__ = ["__version__"]
