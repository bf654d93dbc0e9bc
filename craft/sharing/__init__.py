"""A finished model and the rest of the world: what is shown of it, uploaded, downloaded, and trusted.

    record.py   what a run leaves beside its model: scores, curve, sample, facts about the text
    card.py     the model card, and the metadata before it
    privacy.py  what nobody else should see: secrets, paths of this machine
    bundle.py   which files of a folder are for others, sanitized
    upload.py   a model, or a whole checkpoint to resume from, onto the Hub
    trust.py    what may be loaded

Nothing here imports torch: `craft push --dry-run` answers at once.
"""
