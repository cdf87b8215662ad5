"""What both ends of toprope agree on; leans on nothing else of ours."""

import os

__version__ = "0.1.0"

# onnxruntime from 1.29 on sends telemetry of its own to its maker and keeps a database in the home folder, unless this stands
# in the environment before it is imported, in children too. Nothing leaves a device that its owner did not allow.
# Source: github.com/microsoft/onnxruntime/pull/27379.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
