"""How a model that reads nothing but text reads a chat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from craft.utils.errors import UserError

ONE_AFTER_THE_OTHER = (
    "{% for message in messages %}{{ message.content }}{% if not loop.last %}SEPARATOR{% endif %}{% endfor %}"
)


def read_template(file: Path) -> str:
    """A Jinja template that makes one text of the messages of a chat.

    Raises:
        UserError: if the file can't be read, or isn't a template.
    """
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        text = file.read_text(encoding="utf-8")
        _compile_jinja_template(text)  # with the tags and filters that transformers' templates have
    except (OSError, UnicodeDecodeError, TemplateSyntaxError) as error:
        line = f":{error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise UserError(
            f"can't read --chat-template {file}{line}: {error}", code="file-unreadable"
        ) from error
    return text


def plain_template(tokenizer: Any) -> str:
    """The messages' contents one after the other, on lines of their own where line breaks are known."""
    newline = "" if tokenizer.alphabet and "\n" not in tokenizer.alphabet else "{{ '\\n' }}"
    return ONE_AFTER_THE_OTHER.replace("SEPARATOR", newline)
