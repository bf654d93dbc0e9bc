"""A model behind an OpenAI-compatible server of our own: the function behind `craft serve`."""
