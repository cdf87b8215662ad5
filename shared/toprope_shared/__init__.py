"""What both ends of toprope agree on; leans on nothing else of ours."""

__version__ = "0.1.0"
