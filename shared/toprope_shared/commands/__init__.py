"""The commands that every installation has: `toprope predict` asks a model, `toprope doctor` looks at the machine."""

from toprope_shared.commands.doctor import doctor_app
from toprope_shared.commands.predict import predict_app

__all__ = ["doctor_app", "predict_app"]
