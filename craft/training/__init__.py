"""Training: arguments, the trainer, its optimizer, evaluation, checkpoints and logs.

Receives a model object and never imports a concrete model. Start reading at `base.py`.
"""
