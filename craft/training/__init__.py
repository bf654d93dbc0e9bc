"""Training: arguments, the trainer, its optimizer, validation, checkpoints and logs.

Receives a model object and never imports a concrete model. Start reading at `base.py`.
"""

import io
from contextlib import redirect_stdout

with redirect_stdout(io.StringIO()):  # it says there, where our own lines go, that W&B is offline
    import transformers.integrations.integration_utils  # noqa: F401
