"""A text-to-image test bed in which truth is known: its data, and how its models are trained."""

__version__ = "0.2.0"
