"""Markdown as Content, block by block: cheap enough to draw while it grows.

Refuses to know widgets. A top-level block becomes one piece of content; raw HTML is text, links and images
open nothing. Syntax: CommonMark, tables, strikethrough, and `**` that closes after Chinese punctuation.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.parser_inline import ParserInline
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned
from markdown_it.token import Token
from markdown_it.utils import EnvType
from rich.cells import cell_len
from textual.content import Content, Span
from textual.highlight import highlight

Kind = Literal["text", "heading", "code", "table", "rule"]
_MAX_HIGHLIGHT = 20_000  # characters; Pygments takes a second for more on a small board
_STYLES = {"strong": "bold", "em": "italic", "s": "strike", "link": "underline"}
_CODE_STYLE = "$text-accent"
_QUOTE = "▌ "
_JOINT = " │ "
_WIDE_LOOKING = "\u201c\u201d\u2018\u2019\u2026\u2014"  # quotes, ellipsis, dash: wide in Chinese text


@dataclass(frozen=True)
class Block:
    """One top-level block."""

    kind: Kind
    content: Content


def render(source: str) -> Content:
    """Return a whole text as one content, its blocks apart by an empty line."""
    return Content("\n\n").join([block.content for block in blocks(source)])


def blocks(source: str, *, is_growing: bool = False) -> list[Block]:
    """Return the blocks of a text; of one that grows, the last code block is not coloured yet."""
    groups = list(_groups(_parser().parse(source)))
    return [_block(group, source, is_open=is_growing and group is groups[-1]) for group in groups]


def code_blocks(source: str) -> list[str]:
    """Return the contents of the fenced code blocks of a text, wherever they stand."""
    return [token.content for token in _parser().parse(source) if token.type in ("fence", "code_block")]


@dataclass
class GrowingText:
    """A text that is still coming: most of it is drawn for good, and its tail is drawn again each time.

    A block is for good once the first line of the next one is complete: before that the two could still be
    one list.
    """

    source: str = ""
    _tail: str = ""
    live: list[Block] = field(default_factory=list)
    """Blocks that may still change."""

    def feed(self, text: str) -> int:
        """Take more text, and return how many of the live blocks before it are now for good."""
        self.source += text
        self._tail += text
        groups = list(_groups(_parser().parse(self._tail)))
        n_final = max(0, len(groups) - 1)
        start = groups[-1][0].map[0] if groups and groups[-1][0].map else 0
        lines = self._tail.split("\n")
        if n_final and start + 1 >= len(lines):  # the last block's first line has no end yet
            n_final = 0
        self.live = [_block(group, self._tail, is_open=group is groups[-1]) for group in groups]
        if n_final:
            self._tail = "\n".join(lines[start:])
        return n_final


def _groups(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Yield the tokens of each top-level block."""
    group: list[Token] = []
    depth = 0
    for token in tokens:
        group.append(token)
        depth += token.nesting
        if depth == 0:
            yield group
            group = []


def _block(tokens: list[Token], source: str, *, is_open: bool) -> Block:
    """Return one block; where its nesting is deeper than the parser goes, its source."""
    block = _parsed(tokens, is_open=is_open)
    if block.kind == "text" and not block.content.plain.strip() and tokens[0].map:
        start, end = tokens[0].map
        return Block("text", Content("\n".join(source.split("\n")[start:end])))
    return block


def _parsed(tokens: list[Token], *, is_open: bool) -> Block:
    first = tokens[0]
    if first.type in ("fence", "code_block"):
        return Block("code", _code(first, is_open=is_open))
    if first.type == "heading_open":
        return Block("heading", _inline(tokens[1]).stylize("bold"))
    if first.type == "table_open":
        return Block("table", _table(tokens))
    if first.type == "hr":
        return Block("rule", Content("─" * 20))
    if first.type == "html_block":
        return Block("text", Content(first.content.rstrip("\n")))
    return Block("text", _lines(tokens))


def _code(token: Token, *, is_open: bool) -> Content:
    text = token.content.rstrip("\n")
    language = token.info.strip().partition(" ")[0]
    if is_open or not language or len(text) > _MAX_HIGHLIGHT:
        return Content(text)
    return highlight(text, language=language)


def _table(tokens: list[Token]) -> Content:
    """Return the rows of a table with their cells padded to the width of their columns."""
    rows: list[list[Content]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(_inline(token))
    n_columns = max(map(len, rows), default=0)
    widths = [max((row[i].cell_length for row in rows if i < len(row)), default=0) for i in range(n_columns)]
    lines = [Content(_JOINT).join(map(_pad, row, widths)) for row in rows]
    rule = Content("─┼─".join("─" * width for width in widths))
    return Content("\n").join([*(line.stylize("bold") for line in lines[:1]), rule, *lines[1:]])


def _pad(cell: Content, width: int) -> Content:
    return cell.pad_right(width - cell.cell_length)


@dataclass
class _Place:
    """Where in lists and quotes a line stands."""

    markers: list[int | None] = field(default_factory=list)
    """One per open list: the next number, or None for bullets."""
    n_quotes: int = 0
    is_item_new: bool = False

    def follow(self, token: Token) -> None:
        """Go into a list, an item or a quote, or out of it."""
        if token.type == "bullet_list_open":
            self.markers.append(None)
        elif token.type == "ordered_list_open":
            self.markers.append(int(token.attrs.get("start", 1)) - 1)
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            self.markers.pop()
        elif token.type == "list_item_open":
            number = self.markers[-1]
            self.markers[-1] = None if number is None else number + 1
            self.is_item_new = True
        elif token.type in ("blockquote_open", "blockquote_close"):
            self.n_quotes += token.nesting

    def prefix(self) -> str:
        """Return what stands before the next line."""
        quotes = _QUOTE * self.n_quotes
        if not self.markers:
            return quotes
        indent = "  " * (len(self.markers) - 1)
        number = self.markers[-1]
        marker = "• " if number is None else f"{number}. "
        if not self.is_item_new:
            return quotes + indent + " " * cell_len(marker)
        self.is_item_new = False
        return quotes + indent + marker


def _lines(tokens: list[Token]) -> Content:
    """Return paragraphs, lists and quotes, one line per paragraph."""
    place, lines = _Place(), []
    for token in tokens:
        place.follow(token)
        if token.type == "inline":
            lines.append(Content(place.prefix()) + _inline(token))
        elif token.type in ("fence", "code_block"):
            code = _code(token, is_open=False).split("\n", allow_blank=True)
            lines += [Content(place.prefix()) + line for line in code]
        elif token.type == "html_block":
            lines.append(Content(place.prefix() + token.content.rstrip("\n")))
    return Content("\n").join(lines)


def _inline(token: Token) -> Content:
    """Return the text of a paragraph with its styles."""
    text = ""
    spans: list[Span] = []
    opened: list[tuple[str, int, str]] = []
    for child in token.children or ():
        name = child.type.rpartition("_")[0]
        if child.type.endswith("_open") and name in _STYLES:
            opened.append((name, len(text), str(child.attrs.get("href", ""))))
        elif child.type.endswith("_close") and opened and opened[-1][0] == name:
            _, start, target = opened.pop()
            spans.append(Span(start, len(text), _STYLES[name]))
            text += f" ({target})" if target and target != text[start:] else ""
        elif child.type == "code_inline":
            spans.append(Span(len(text), len(text) + len(child.content), _CODE_STYLE))
            text += child.content
        elif child.type == "softbreak":
            text += " "
        elif child.type == "hardbreak":
            text += "\n"
        else:  # text, raw HTML, and of an image its description
            text += child.content
    return Content(text, spans)


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    parser.disable("reference")  # a definition would vanish: "[Answer]: 42" is an answer
    parser.inline = _WideInline()
    return parser


class _WideState(StateInline):
    """Lets `*` open and close beside wide characters, where CommonMark wants a space that Chinese has not."""

    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
        scanned = super().scanDelims(start, canSplitWord)
        if self.src[start] != "*":
            return scanned
        end = start + scanned.length
        before = self.src[start - 1] if start else " "
        after = self.src[end] if end < len(self.src) else " "
        if not (_is_wide(before) or _is_wide(after)):
            return scanned
        can_open = scanned.can_open or not after.isspace()
        can_close = scanned.can_close or not before.isspace()
        return Scanned(can_open, can_close, scanned.length)


class _WideInline(ParserInline):
    """markdown-it's inline parser over _WideState."""

    def parse(self, src: str, md: MarkdownIt, env: EnvType, tokens: list[Token]) -> list[Token]:
        state = _WideState(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens


def _is_wide(char: str) -> bool:
    return char in _WIDE_LOOKING or unicodedata.east_asian_width(char) in "WF"
