"""Deltas: the difference between two model files, tensor by tensor, so that a device need not fetch what it nearly has."""

from toprope_shared.deltas.layout import Header, Limits, read_header
from toprope_shared.deltas.making import Region, make, worth_offering
from toprope_shared.deltas.rebuilding import apply

__all__ = ["Header", "Limits", "Region", "apply", "make", "read_header", "worth_offering"]
