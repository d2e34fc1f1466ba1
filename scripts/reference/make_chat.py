#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/fixtures/chat_templates/rendered.json: what transformers makes of the templates beside it.

    make_chat.py [FOLDER]

Each row names a template, and has the messages, the variables, and the text, or the error, if the template raises one.
The templates are our own, in the manner of those of published models.
"""
import json
import pathlib
import sys

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

FOLDER = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[2] / "tests/fixtures/chat_templates")


def say(*turns):
    return [{"role": role, "content": content} for role, content in turns]


CONVERSATIONS = [
    say(("user", "Hello")),
    say(("system", "Be brief.\n"), ("user", "  What is it?  "), ("assistant", "\n It is \u00e9t\u00e9. "), ("user", "Why?\nSay \"so\".")),
    say(("user", "a"), ("assistant", "<think>no</think>\n\nyes"), ("user", "{{ b }} {% c %}")),
    say(("user", "a"), ("user", "b")),
    say(("system", "one"), ("system", "two"), ("user", ""), ("assistant", "end")),
    [{"role": "user", "content": "named", "name": "Ann"}],
]


def render(template, messages, prompt):
    try:
        texts, _ = render_jinja_template(conversations=[messages], chat_template=template, add_generation_prompt=prompt,
                                         bos_token="<s>", eos_token="</s>")
        return {"text": texts[0]}
    except jinja2.TemplateError as error:
        return {"error": str(error)}


def main():
    rows = []
    for path in sorted(FOLDER.glob("*.jinja")):
        for messages in CONVERSATIONS:
            for prompt in (False, True):
                rows.append({"template": path.name, "messages": messages, "add_generation_prompt": prompt,
                             **render(path.read_text(), messages, prompt)})
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    (FOLDER / "rendered.json").write_text(text)
    print(f"{len(rows)} rows by transformers {transformers.__version__}, jinja2 {jinja2.__version__}")


if __name__ == "__main__":
    main()
