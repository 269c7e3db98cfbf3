"""What a page of Markdown claims, taken apart: blocks of code, commands, links, pictures and numbers."""

from __future__ import annotations

import dataclasses
import re
import shlex

FENCE = re.compile(r"^```(?P<language>[^\n`]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
NUMBER = re.compile(r"(?<![\w./=`-])[+\-\N{MINUS SIGN}]?(?:\d[\d,]*\.\d+(?:e-?\d+)?|\d[\d,]*(?= ?%))(?![\w/])")
COMMANDS = ("learngene", "make")


@dataclasses.dataclass(frozen=True)
class Fence:
    """A fenced block: its language ("" for none), its text, and the line it begins at."""

    language: str
    body: str
    line: int


def fences(page: str) -> list[Fence]:
    """The fenced blocks of a page."""
    return [Fence(m["language"].strip(), m["body"], page[: m.start()].count("\n") + 1) for m in FENCE.finditer(page)]


def commands(body: str) -> list[list[str]]:
    """The command lines of a shell block as words: continued lines joined, comments and prompts away."""
    joined = re.sub(r"\\\n\s*", " ", body)
    lines = [shlex.split(line.strip().removeprefix("$ "), comments=True) for line in joined.splitlines()]
    return [words for line in lines for words in _split(line) if words]


def _split(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", ";", "|", "||"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def inline_commands(page: str) -> list[list[str]]:
    """Commands of this project within prose: `learngene VERB ...` and `make TARGET`, not their bare names."""
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", page))
    found = [shlex.split(span) for span in spans if span.split()[0] in COMMANDS and len(span.split()) > 1]
    return [words for words in found if not {"...", "VERB", "TARGET"} & set(words)]


def prose(page: str) -> str:
    """A page without fenced blocks, code spans, comments, and the targets of links."""
    text = re.sub(r"<!--.*?-->", "", FENCE.sub("", page), flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`\n]*`", "", text))


def numbers(text: str) -> list[str]:
    """Numbers with a decimal point, and numbers before a percent sign, without sign and thousands separators."""
    return [m.group(0).lstrip("+-\N{MINUS SIGN}").replace(",", "") for m in NUMBER.finditer(text)]


def slug(heading: str) -> str:
    """The anchor of a heading, as code hosts make it."""
    words = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return words.replace(" ", "-")
