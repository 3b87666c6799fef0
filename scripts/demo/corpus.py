"""The conversations that the demo model is trained on: questions in many wordings, each with its answer.

Reads the TOML files beside it. Knows the chat format of Qwen3, and nothing of tokens or tensors.
"""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
FILES = ("using", "concepts", "talk", "unknown", "languages")
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly and exactly; say so when you do not know.",
    "Be brief.",
    "Answer in one sentence.",
)
_BEFORE = (
    "please",
    "hey,",
    "hello,",
    "tell me:",
    "quick question:",
    "one more thing:",
    "ok,",
    "so",
    "sorry,",
)
_AFTER = ("please", "thanks", "please?", "thank you", "??", "!")
_WORDS = re.compile(r"[\w+*/=-]+")
_POLITE = re.compile(
    r"^(?:(?:please|hey|hello|hi|tell me|quick question|one more thing|ok|so|sorry) )+"
    r"|(?: (?:please|thanks|thank you))+$"
)
_LITTLE_WORDS = (
    "a an the is are was do does did can could would should will to of in on for with my me i it that this"
    " there please what how which tell about"
)
_LITTLE = frozenset(_LITTLE_WORDS.split())
_CUT_SHARE, _CUT_WORDS = 0.85, 7
_FRAME_SHARE, _WORD_SHARE = 0.35, 0.4
_NOTHING = "<think>\n\n</think>\n\n"
_SIGNS = {"+": "plus", "-": "minus", "*": "times"}
_SUMS = ("What is {}?", "{}", "{} =", "how much is {}", "calculate {}", "what's {}")
_WRITTEN = ("{a} {sign} {b}", "{a}{sign}{b}", "{a} {word} {b}")
_TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


class Question(NamedTuple):
    """One wording and what is to be said to it."""

    text: str
    answer: str
    thinking: str


@dataclass(frozen=True)
class Corpus:
    """Everything the demo is to know."""

    asked: tuple[Question, ...]
    """What it is trained on."""
    held_out: tuple[Question, ...]
    """Other wordings of the same questions, by which it is judged."""
    by_strangers: tuple[Question, ...]
    """Wordings by two who saw the answers and no other wording: the harder judgement."""
    tools: tuple[dict[str, object], ...]

    @property
    def judged_by(self) -> set[str]:
        """The bare words of all that it must never be taught."""
        return {bare(question.text) for question in (*self.held_out, *self.by_strangers)}


def load_corpus() -> Corpus:
    """Read all files."""
    topics = {topic["name"]: topic for name in FILES for topic in _read(name)["topic"]}

    def by_others(file: str) -> list[Question]:
        return [one for name, ask in _read(file).items() for one in _questions(topics[name] | ask, "ask")]

    asked = [one for topic in topics.values() for one in _questions(topic, "ask")]
    held_out = [one for topic in topics.values() for one in _questions(topic, "held_out")]
    corpus = Corpus(
        # Ours twice: the others wrote five for each of them, and ours hold the plainest.
        asked=(*asked, *asked, *by_others("asked"), *_sums()),
        held_out=tuple(held_out),
        by_strangers=tuple(by_others("strangers")),
        tools=tuple(_read("tools")["tool"]),
    )
    both = corpus.judged_by & {bare(question.text) for question in corpus.asked}
    assert not both, f"taught, and judged by: {sorted(both)}"
    return corpus


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def _questions(topic: dict[str, object], kind: str) -> Iterator[Question]:
    name = str(topic["name"]).replace("-", " ")
    thinking = str(topic.get("think") or f"The question is about {name}.")
    for text in topic[kind]:  # type: ignore[attr-defined]
        yield Question(text, str(topic["answer"]), thinking)


def _sums() -> Iterator[Question]:
    """Yield the sums of two numbers up to ten, each way of writing one in two of the ways of asking."""
    for a, b, (sign, word) in product(range(11), range(11), _SIGNS.items()):
        result = {"+": a + b, "-": a - b, "*": a * b}[sign]
        if result < 0:
            continue
        for index, written in enumerate(_WRITTEN):
            said = written.format(a=a, sign=sign, b=b, word=word)
            for ask in (a * 7 + b * 3 + index, a * 7 + b * 3 + index + 3):
                text = _SUMS[ask % len(_SUMS)].format(said)
                yield Question(text, f"{a} {sign} {b} = {result}.", f"This is a sum: {a} {sign} {b}.")


def bare(text: str) -> str:
    """Return the words alone: what differs in case, punctuation or politeness is the same question."""
    words = " ".join(_WORDS.findall(text.lower()))
    return _POLITE.sub("", words) or words


class Wordings:
    """Says a question in other words: wordings.toml."""

    def __init__(self, chance: random.Random) -> None:
        self._random = chance
        read = _read("wordings")
        self._frames = [(_pattern(frame), frames) for frames in read["frames"] for frame in frames]
        self._same: dict[str, list[str]] = {}
        for words in read["same"]:
            for word in words:
                self._same.setdefault(word.lower(), []).extend(words)
        phrases = "|".join(re.escape(word) for word in sorted(self._same, key=len, reverse=True))
        self._phrase = re.compile(rf"(?<![\w`:-])(?:{phrases})(?![\w`:-])", re.IGNORECASE)

    def other(self, text: str) -> str:
        """Return a question with its frame, some of its words, both or neither exchanged."""
        if self._random.random() < _FRAME_SHARE:
            text = self._reframed(text)
        if self._random.random() < _WORD_SHARE:
            text = self._phrase.sub(self._another, text)
        return text

    def _reframed(self, text: str) -> str:
        bare = text.rstrip("?.! ")
        fitting = [
            (match[1], frames) for pattern, frames in self._frames if (match := pattern.fullmatch(bare))
        ]
        if not fitting:
            return text
        about, frames = self._random.choice(fitting)
        return self._random.choice(frames).format(about)

    def _another(self, found: re.Match[str]) -> str:
        if self._random.random() < 0.5:
            return found[0]
        return self._random.choice(self._same[found[0].lower()])


def _pattern(frame: str) -> re.Pattern[str]:
    before, after = (re.escape(part) for part in frame.split("{}"))
    return re.compile(f"{before}(.+){after}", re.IGNORECASE)


class Talker:
    """Makes conversations as people would hold them; the same seed makes the same ones."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self._corpus, self._random = corpus, random.Random(seed)
        self._judged_by = corpus.judged_by
        self._wordings = Wordings(self._random)

    def epoch(self) -> Iterator[list[tuple[str, bool]]]:
        """Yield conversations in which every question is asked as often as the corpus has it.

        A conversation is its text in parts; True marks those that the model has to say.
        """
        questions = list(self._corpus.asked)
        self._random.shuffle(questions)
        while questions:
            n_turns = self._random.choices((1, 2, 3, 5, 12), (80, 12, 5, 2, 1))[0]
            yield self._conversation([questions.pop() for _ in range(min(n_turns, len(questions)))])
            if self._random.random() < 0.02:
                yield self._tool_call()

    def _conversation(self, questions: list[Question]) -> list[tuple[str, bool]]:
        mode = self._random.choices(("chat", "think", "told"), (50, 40, 10))[0]
        parts: list[tuple[str, bool]] = []
        if self._random.random() < 0.25:
            parts.append((f"<|im_start|>system\n{self._random.choice(_SYSTEMS)}<|im_end|>\n", False))
        for index, question in enumerate(questions):
            text = self._worded(question.text)
            if index < len(questions) - 1 and self._random.random() < 0.3:
                # As the template shows earlier turns: without their thinking. Nobody has to say that.
                parts += [(part, False) for part, _ in _turn(text, "", question.answer)]
            elif mode == "think":
                parts += _turn(text, (f"<think>\n{question.thinking}\n</think>\n\n", True), question.answer)
            elif mode == "told":
                parts += _turn(f"{text} /no_think", (_NOTHING, True), question.answer)
            else:
                parts += _turn(text, (_NOTHING, False), question.answer)
        return self._cut(parts) if self._random.random() < _CUT_SHARE else parts

    def _cut(self, parts: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
        """End a conversation within its last answer: what is hard to learn is how an answer begins."""
        *before, (answer, _), _newline = parts
        words = answer.split(" ")
        return [*before, (" ".join(words[:_CUT_WORDS]), True)] if len(words) > _CUT_WORDS else parts

    def _worded(self, text: str) -> str:
        """Return a question in other words and as one in a hurry types it, but never as one to judge by."""
        is_long = text.isascii() and len(text) > 12
        steps = (
            (1.0 if text.isascii() else 0.0, self._wordings.other),
            (0.3, str.lower),
            (0.3, lambda one: one.rstrip("?.!")),
            (0.2 if is_long else 0.0, self._shortened),
            (0.1 if is_long else 0.0, self._shuffled),
            (0.12 if is_long else 0.0, self._led_up_to),
            (0.08 if is_long else 0.0, lambda one: f"{one} {self._random.choice(_AFTER)}"),
            (0.1 if is_long else 0.0, self._mistyped),
            (0.05 if is_long else 0.0, lambda one: one[0].upper() + one[1:]),
        )
        for share, step in steps:
            # Looked at after each: behind the next slip one that is held out would be taught all the same.
            if self._random.random() < share and bare(other := step(text)) not in self._judged_by:
                text = other
        return text

    def _led_up_to(self, text: str) -> str:
        return f"{self._random.choice(_BEFORE)} {text[0].lower()}{text[1:]}"

    def _shortened(self, text: str) -> str:
        """Leave out a word, or all that say little; a question keeps at least two words."""
        words = text.split()
        if self._random.random() < 0.5:
            kept = [word for word in words if word.lower().strip("?.,!") not in _LITTLE]
        else:
            at = self._random.randrange(len(words))
            kept = [*words[:at], *words[at + 1 :]] if len(words) > 4 else words
        return " ".join(kept) if len(kept) >= 2 else text

    def _shuffled(self, text: str) -> str:
        words = text.split()
        self._random.shuffle(words)
        return " ".join(words)

    def _mistyped(self, text: str) -> str:
        at = self._random.randrange(1, len(text) - 1)
        if self._random.random() < 0.5:
            return text[:at] + text[at + 1 :]
        return text[: at - 1] + text[at] + text[at - 1] + text[at + 1 :]

    def _tool_call(self) -> list[tuple[str, bool]]:
        tools = self._random.sample(self._corpus.tools, self._random.randrange(1, 4))
        tool = self._random.choice(tools)
        text, arguments = self._random.choice(tool["ask"])  # type: ignore[arg-type]
        call = json.dumps({"name": tool["name"], "arguments": arguments})
        known = "\n".join(map(_signature, tools))
        head = f"<|im_start|>system\n{_TOOLS_HEAD}{known}{_TOOLS_TAIL}<|im_end|>\n"
        answer = f"<tool_call>\n{call}\n</tool_call>"
        return [(head, False), *_turn(text, (_NOTHING, False), answer)]


def _turn(text: str, thinking: tuple[str, bool] | str, answer: str) -> list[tuple[str, bool]]:
    asked = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    if not thinking:
        return [(asked, False), (f"{answer}<|im_end|>\n", True)]
    assert isinstance(thinking, tuple)
    return [(asked, False), thinking, (f"{answer}<|im_end|>", True), ("\n", False)]


def _signature(tool: dict[str, object]) -> str:
    kinds = {name: {"type": kind} for name, kind in tool["parameters"].items()}  # type: ignore[attr-defined]
    function = {
        "name": tool["name"],
        "description": tool["description"],
        "parameters": {"type": "object", "properties": kinds, "required": list(kinds)},
    }
    return json.dumps({"type": "function", "function": function})
