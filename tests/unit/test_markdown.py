"""Markdown block by block: however the text is cut, the blocks are those of the whole text."""

from __future__ import annotations

import random

import pytest

from edgeqwen.tui.markdown import GrowingText, blocks, code_blocks, render

MIXED = """# Title

Some **bold**, *em* and `code`, and a [link](http://example.com).

1. one
2. two
   - inner
   - more

   para in item
3. three

> quoted
> more

```python
def f(x):
    return x
```

| a | 数字 |
|---|---|
| 1 | 二三 |

---
<b>html</b> & entities

    indented code

**注意：**请勿外传。2 * 3 * 4, a*b*c
"""
DOCUMENTS = [
    MIXED,
    "- a\n- b\n- c\n\nafter",
    "2. second\n3. third\n\ntext\n\n4. fourth",
    "```\nnever closed\n\nstill code",
    "a\n===\n\nb\n---\n",
    "one line",
    "\n\n\nlate start",
    "* * *\n\n+ x\n\n  y\n\n+ z\n",
    "| a |\n|---|\n" + "| x |\n" * 30,
]


def cuts(text: str, rng: random.Random) -> list[str]:
    pieces = []
    while text:
        size = rng.randrange(1, 7)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@pytest.mark.parametrize("document", DOCUMENTS, ids=range(len(DOCUMENTS)))
@pytest.mark.parametrize("seed", range(4))
def test_a_growing_text_ends_as_the_whole_one(document: str, seed: int) -> None:
    pieces = list(document) if seed == 0 else cuts(document, random.Random(seed))
    growing, final = GrowingText(), []
    for piece in pieces:
        n_final = growing.feed(piece)
        final += growing.live[:n_final]
        del growing.live[:n_final]
    shown = [(block.kind, block.content.plain) for block in [*final, *growing.live]]
    assert shown == [(block.kind, block.content.plain) for block in blocks(document)]
    assert growing.source == document


def styled(text: str, style: str) -> list[str]:
    content = render(text)
    return [content.plain[span.start : span.end] for span in content.spans if span.style == style]


def test_bold_closes_after_chinese_punctuation() -> None:
    assert styled("**注意：**请勿", "bold") == ["注意："]
    assert styled("你好**world**！", "bold") == ["world"]
    assert styled("2 * 3 * 4 and a ** b", "bold") == []


def test_columns_are_as_wide_as_they_look() -> None:
    lines = render("| a | b |\n|---|---|\n| 数字 | 1 |\n").plain.split("\n")
    assert lines == ["a    │ b", "─────┼──", "数字 │ 1"] or [line.index("│") for line in (lines[0], lines[2])]


def test_what_looks_like_a_reference_is_an_answer() -> None:
    assert render("[Answer]: 42").plain == "[Answer]: 42"


def test_html_and_images_are_text_and_links_show_where_they_go() -> None:
    assert render("<b>x</b> ![alt](http://a/b.png)").plain == "<b>x</b> alt"
    assert render("[here](http://a.example/)").plain == "here (http://a.example/)"


def test_code_is_coloured_once_it_is_closed_and_markup_in_it_is_text() -> None:
    source = "```python\nx = '[red]'\n```"
    assert render(source).plain == "x = '[red]'"
    assert not blocks("```python\nx = 1", is_growing=True)[0].content.spans
    assert code_blocks(source + "\n\n- item\n\n  ```\n  two\n  ```") == ["x = '[red]'\n", "two\n"]


def test_deep_nesting_is_cut_and_not_followed() -> None:
    assert render(">" * 5000 + "x")
    assert render("- " * 2000 + "x")
    assert render("*" * 20_000)
