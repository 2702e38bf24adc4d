"""A page that shows questions with their pictures and answers: one file, nothing is loaded from elsewhere."""

import base64
import os
from pathlib import Path
from typing import Any

import jinja2

from records.pictures import decode
from records.samples import Prompt
from records.task import SPLITS
from tasks.questions.dataset import QuestionSet

_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 24px; color: #1c2430; background: #f5f7fa; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 16px; }
article { background: #fff; border: 1px solid #e1e5ec; border-radius: 8px; padding: 14px; overflow-wrap: anywhere; }
img { max-width: 100%; min-width: 64px; image-rendering: auto; border-radius: 4px; }
.id, .group { color: #667085; font-size: 13px; } .answer { font-weight: 600; white-space: pre-wrap; }
p { margin: 8px 0 0; white-space: pre-wrap; }
</style></head><body><h1>{{ title }}</h1>
{% for split, total, shown in splits %}
<h2>{{ split }}: {{ shown | length }} of {{ total }} questions</h2><main>
{% for item in shown %}
<article><div class="id">{{ item.id }}</div>
{% for part in item.parts %}
{% if part.image %}<img src="{{ part.image }}" alt="picture {{ part.number }}">
{% else %}<p>{{ part.text }}</p>{% endif %}

{% endfor %}
<p class="answer">{{ item.answer }}</p>
{% for name, value in item.groups %}<div class="group">{{ name }}: {{ value }}</div>{% endfor %}

</article>
{% endfor %}
</main>
{% endfor %}
</body></html>
""")


def write_page(data: QuestionSet, out: Path, split: str | None, most: int) -> int:
    """The first *most* questions, shared evenly by the splits; returns how many. Raises ValueError, IsADirectoryError.

    An old page is replaced, whole or not at all.
    """
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; name the page, for example {out / 'questions.html'}")
    names = [split] if split else list(SPLITS)
    splits = []
    for place, name in enumerate(names):
        prompts = data.prompts(name)
        count = most // len(names) + (place < most % len(names))
        splits.append((name, len(prompts), [_to_item(prompt) for prompt in prompts[:count]]))
    page = _PAGE.render(title=data.folder.name, splits=splits)
    part = out.with_name(out.name + ".part")
    out.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(page)
    os.replace(part, out)
    return sum(len(shown) for *_, shown in splits)


def _to_item(prompt: Prompt) -> dict[str, Any]:
    """Raises ValueError if a picture cannot be read."""
    pictures = iter(enumerate(prompt.pictures, 1))
    parts = []
    for part in (part for message in prompt.messages for part in message["content"]):
        if part["type"] == "image":
            number, encoded = next(pictures)
            kind = str(decode(encoded).format or "png").lower()
            parts.append({"image": f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}", "number": number})
        else:
            parts.append({"text": part["text"]})
    return {"id": prompt.id, "parts": parts, "answer": prompt.gold.answer, "groups": prompt.gold.groups}
