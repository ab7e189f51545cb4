"""Renders chat templates as Hugging Face's `transformers` does.

Reads lines of JSON, {"template": PATH, "context": {...}}, and writes for each the text as JSON, or null if the template
raises an error.
"""

import datetime
import functools
import json
import sys

import jinja2.ext
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """The tag around a model's answers, without effect."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(reason):
    raise jinja2.exceptions.TemplateError(reason)


environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = to_json
environment.globals["raise_exception"] = refuse
environment.globals["strftime_now"] = datetime.date(2021, 5, 20).strftime


@functools.cache
def compiled(path):
    with open(path, encoding="utf-8") as file:
        return environment.from_string(file.read())


for line in sys.stdin:
    task = json.loads(line)
    try:
        text = compiled(task["template"]).render(**task["context"])
    except Exception:
        text = None
    print(json.dumps(text))
