"""One data plane and its doors; the edge and the cloud mount the same."""
