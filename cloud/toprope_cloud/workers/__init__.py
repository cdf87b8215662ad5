"""Several processes that answer inference behind one port: the crew that keeps them, and the process that each of them is."""
