"""The README.md of an exported sentence encoder: what it is, at which dims, how to use it."""

import json
from collections.abc import Mapping, Sequence

from mrl_jax.models.text.prompts import Role

Scores = Mapping[str, Mapping[int, float]]

_FRONT = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- sentence-similarity
- feature-extraction
- matryoshka
---
"""


def table(scores: Scores) -> str:
    """A Markdown table: one row per dim, one column per measure; "" without scores.

    A dim that was not measured has an empty cell.
    """
    dims = sorted({dim for by_dim in scores.values() for dim in by_dim}, reverse=True)
    if not dims:
        return ""
    lines = [f"| dims | {' | '.join(scores)} |", f"| --- |{' --- |' * len(scores)}"]
    for dim in dims:
        cells = (f"{by_dim[dim]:.4f}" if dim in by_dim else "" for by_dim in scores.values())
        lines.append(f"| {dim} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def card(
    title: str,
    *,
    width: int,
    max_length: int,
    trained_dims: Sequence[int],
    prompts: Mapping[str, str],
    used: Mapping[Role, str],
    scores: Scores,
    image_size: int = 0,
) -> str:
    """The text of README.md.

    Args:
      title: of the model.
      width: dims of a whole embedding.
      max_length: tokens after which a text is cut; 0: never.
      trained_dims: prefixes that were trained, () where unknown.
      prompts: name -> text.
      used: the prompt of each role in training and for the scores.
      scores: see `table`.
      image_size: pixels per side of the images that it reads too; 0: it reads texts alone.
    """
    dims = ", ".join(map(str, trained_dims)) if trained_dims else "not known"
    example = max((dim for dim in trained_dims if dim < width), default=width)
    limit = f"at most {max_length} tokens of it" if max_length else "all of it"
    name = next((name for name, text in prompts.items() if text), "")
    with_prompt = f", prompt_name={json.dumps(name)}" if name else ""
    front, of_images, what = _FRONT, "", f"Text in ({limit})"
    if image_size:
        front = front.replace("tags:\n", "tags:\n- multimodal\n")
        of_images = (
            'z_of_images = model.encode([Image.open("photo.jpg")], normalize_embeddings=True)\n'
        )
        what = f"Text ({limit}) or an image ({image_size} pixels a side of its middle) in"
    parts = [
        f"{front}\n# {title}\n",
        f"{what}, an embedding of {width} dims out, compared by cosine similarity.\n"
        f"Prefixes that were trained to stand alone: {dims}.\n",
        "## Use\n",
        f"```python\n{'from PIL import Image' + chr(10) if image_size else ''}"
        "from sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("PATH", truncate_dim={example})\n'
        f'z = model.encode(["a text", "another one"]{with_prompt}, normalize_embeddings=True)\n'
        f"{of_images}```\n",
        "A prefix of a unit vector is shorter than 1: keep `normalize_embeddings=True` wherever\n"
        "inner products are compared. The same numbers in JAX:\n",
        "```python\n"
        "import mrl_jax\n\n"
        f'z = mrl_jax.load("PATH").embed(["a text", "another one"], dim={example}{with_prompt})\n'
        "```\n",
    ]
    if name:
        rows = "".join(f"- `{name}`: {json.dumps(text)}\n" for name, text in prompts.items())
        before = {role: json.dumps(text) if text else "nothing" for role, text in used.items()}
        parts.append(
            f"## Prompts\n\n{rows}\nIn training and for the scores: {before['query']} before "
            f"queries, {before['document']} before documents, {before['default']} before other "
            "texts.\n"
        )
    if scores:
        parts.append(f"## Scores\n\n{table(scores)}")
    return "\n".join(parts)
