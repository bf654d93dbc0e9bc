"""What those who come from nanoGPT, char-rnn and the like type, and how it is called here."""

from __future__ import annotations

from collections.abc import Iterable

import click

from craft.utils.common import did_you_mean

COMMANDS = {
    **dict.fromkeys(("sample", "write", "predict", "infer", "inference", "complete"), "generate"),
    **dict.fromkeys(("finetune", "fine-tune", "pretrain", "fit"), "train"),
    **dict.fromkeys(("test", "score", "validate", "perplexity"), "evaluate"),
    **dict.fromkeys(("chat", "server", "api"), "serve"),
    **dict.fromkeys(("upload", "share", "publish"), "push"),
    **dict.fromkeys(("list", "ls", "models", "config", "experiments"), "configs"),
    **dict.fromkeys(("continue", "restart"), "resume"),
    **dict.fromkeys(("env", "info", "check", "version"), "doctor"),
    "convert": "export",
    "bench": "benchmark",
}
OPTIONS = {
    **dict.fromkeys(("length", "tokens", "max_tokens", "num_tokens", "chars", "steps"), "max-new-tokens"),
    **dict.fromkeys(("start", "primetext", "prime", "prefix", "text"), "prompt"),
    "temp": "temperature",
    **dict.fromkeys(("samples", "n_samples"), "num-samples"),
}
"""Of `craft generate`."""


def command_hint(word: str, commands: Iterable[str]) -> str:
    """`", did you mean 'generate'?"` for a word that is no command, else the list of those there are."""
    commands = list(commands)
    if word.lower() in COMMANDS:
        return f", did you mean {COMMANDS[word.lower()]!r}?"
    return did_you_mean(word, commands) or f" (there are: {', '.join(commands)})"


def misuse(error: click.UsageError) -> str:
    """What click says; of an unknown option, what to write instead: a setting, or another option."""
    if not isinstance(error, click.NoSuchOption):
        return error.format_message()
    typed = error.option_name
    name = typed.lstrip("-").replace("-", "_")
    command = error.ctx.info_name if error.ctx else None
    if command in ("train", "resume") and typed.startswith("--"):
        from craft.config.command_line import suggest_setting
        from craft.config.fields import elsewhere

        if elsewhere(name) or not error.possibilities:
            setting = suggest_setting(name)
            return f"No such option {typed!r}; settings are written KEY=VALUE without dashes{setting}"
    if command == "generate" and name in OPTIONS:
        return f"No such option {typed!r}, did you mean '--{OPTIONS[name]}'?"
    return error.format_message()
