"""The project's prose: its docstrings, comments, messages and pages, and what is checked of their words.

`python -m tests.words PATH...` prints the findings; `--prose` prints all sentences; `--sample N --seed S` draws some.
"""

import argparse
import ast
import io
import random
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

# A counted thing, then the unit that it is counted by.
_COUNTED = (
    "frames?|windows?|bytes?|[KMGT]i?B|bits?|codes?|tokens?|samples?|steps?|seconds?|minutes?|milliseconds|ms|µs|hours?|clips?"
    "|lines?|files?|points?|rows?|entry|entries|arrays?|numbers?|modules?|arguments?|threads?|workers?|process|processes|times"
    "|once|twice|share|rate|batch|batches|latents?|vectors?|columns?|tensors?|statistics|updates?|all-reduces?|estimator"
    "|average|perplexity|errors?|loss|losses|norm|memory|states?|traffic|utilisation|usage|counts?|angle|degrees|mean|tables?"
    "|pictures?|curves?|panel|speed|slots?|GPUs?|cards?|parts?|size|one|unit|options?|operations|GFLOP|TFLOP|parameters|words?"
    "|weights?|readings?|scores?|values?|checkpoint|refreshes"
)
_BY = (
    "second|minute|hour|day|frame|window|step|micro batch|batch|clip|file|rank|GPU|card|level|joint|code|part|line|row"
    "|column|run|process|worker|core|parameter|element|host|machine|node|refresh|start|seed|speaker|token|latent|vector|tensor"
    "|channel|layer|split|format|stage|save|shard|call|test|bucket|epoch|body part|codebook|key|value|skeleton|year"
)
_VERBS = "that|which|of|has|is|was|took|takes|could|can|in|with|without"
PER = re.compile(rf"\b({_COUNTED}),? an? ({_BY})s?\b(?! (?:{_VERBS})\b)")
# Words that the project says otherwise.
_BANNED = (r"quarantin\w*", r"vouch\w*", "thereof", "whereof", "wherein", r"of\swhich\snothing")
BANNED = re.compile(rf"\b({'|'.join(_BANNED)})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Prose:
    """A docstring, comment, string or paragraph, with the file and line where it begins."""

    file: Path
    line: int
    kind: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.file.relative_to(ROOT) if self.file.is_relative_to(ROOT) else self.file}:{self.line}"


def prose_of(file: Path) -> Iterator[Prose]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        yield from _of_python(file, text)
    elif file.suffix == ".md":
        yield from _of_markdown(file, text)


def _of_python(file: Path, text: str) -> Iterator[Prose]:
    tree = ast.parse(text)
    docstrings = set()
    for node in ast.walk(tree):
        # Of modules, classes and functions, and those below a field: a string that is a statement of its own.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.add(id(node.value))
            yield Prose(file, node.lineno, "docstring", node.value.value.strip())
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            words = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | inside:
            words = node.value
        else:
            continue
        if len(re.findall(r"[A-Za-z]{2,}", words)) >= 3 and " " in words.strip():
            yield Prose(file, node.lineno, "string", words.strip())
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            words = token.string.lstrip("#! ")
            own = token.line.lstrip().startswith("#")
            if own and comments and comments[-1][0] == token.start[0] - 1:
                comments[-1] = (token.start[0], f"{comments[-1][1]} {words}")
            else:
                comments.append((token.start[0], words))
    yield from (Prose(file, line, "comment", words) for line, words in comments if " " in words)


def _of_markdown(file: Path, text: str) -> Iterator[Prose]:
    fenced = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    line = 1
    for paragraph in re.split(r"(\n\s*\n)", fenced):
        if paragraph.strip():
            yield Prose(
                file,
                line + paragraph[: len(paragraph) - len(paragraph.lstrip())].count("\n"),
                "page",
                paragraph.strip(),
            )
        line += paragraph.count("\n")


def files_of(paths: list[Path]) -> list[Path]:
    found: set[Path] = set()
    for path in paths:
        found |= {path} if path.is_file() else {file for file in path.rglob("*") if file.suffix in (".py", ".md")}
    return sorted(file for file in found if not set(file.parts) & {".venv", "__pycache__", ".git", "build"})


def findings(piece: Prose) -> Iterator[str]:
    if piece.kind == "docstring" and re.match(r"What\b", piece.text):
        yield f"begins with What: {piece.text[:100]!r}"
    flat = " ".join(piece.text.split())
    for hit in PER.finditer(flat):
        yield f"'a' for 'per': …{flat[max(0, hit.start() - 30) : hit.end() + 20]}…"
    for hit in BANNED.finditer(flat):
        yield f"{hit[0]!r}: …{flat[max(0, hit.start() - 30) : hit.end() + 20]}…"


def sentences_of(piece: Prose) -> list[str]:
    flat = re.sub(r"\s+", " ", piece.text)
    return [sentence for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z`])", flat) if len(sentence.split()) >= 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--prose", action="store_true")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    pieces = [piece for file in files_of([path.resolve() for path in asked.paths]) for piece in prose_of(file)]
    if asked.sample:
        all_sentences = [(piece, sentence) for piece in pieces for sentence in sentences_of(piece)]
        for piece, sentence in random.Random(asked.seed).sample(all_sentences, asked.sample):
            print(f"{piece.where}: {sentence}")
    elif asked.prose:
        for piece in pieces:
            print(f"{piece.where} [{piece.kind}] {' '.join(piece.text.split())}")
    else:
        count = 0
        for piece in pieces:
            for finding in findings(piece):
                print(f"{piece.where} [{piece.kind}] {finding}")
                count += 1
        print(f"{count} findings", file=sys.stderr)


if __name__ == "__main__":
    main()
