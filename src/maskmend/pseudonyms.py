"""Stable names in place of case ids, patients, sites and paths, for logs, reports and results that are passed on.

Ids are replaced where cases are found, so everything behind (tables, pages, pictures, file names) never knows them;
messages and written texts are searched for the paths and file names that are left. A name is a keyed hash: without
the names file nobody can tell whom it stands for, not even by trying all names of a hospital.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from maskmend.errors import UsageError, hide_with

_TOKEN = re.compile(r"[^\s/\\,;:'\"()\[\]<>=]+")
_SHORT = 3  # an id such as "1" or "b" is no name, and hiding it everywhere would spoil all figures
_PLACES = re.compile(
    r"(?:images?|imgs?|labels?|masks?|imagesT[rs]|labelsT[rs]|labels(?:T[rs])?_.+|train|test)$"
)
_ORDINARY = re.compile(r"(?i)data|datasets?|cases?|scans?|training|inputs?|volumes?")  # of a whole set
_SEPARATOR = re.compile(r"[/\\]+" if os.name == "nt" else "/+")
_PART = re.compile(r"[^\s/\\\"'<>|,;:]*")  # of a path in a text, as far as nothing else is known of it
_ENDING = re.compile(r"(?:_\d{4})?(?:\.\w+)*(?!\w)")  # what follows an id in the name of a file
_GOES_ON = re.compile(r"[\w-]|\.\w")  # another name that begins alike
_GOES_BEFORE = re.compile(r"[^\W_]")  # a word that ends alike
_IN_SCRIPT = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
_WRITTEN: tuple[Callable[[str], str], ...] = (
    str,
    lambda name: json.dumps(name, ensure_ascii=False)[1:-1],
    lambda name: json.dumps(name)[1:-1],
    lambda name: html.escape(name).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),  # as Jinja does
    lambda name: json.dumps(name, ensure_ascii=False)[1:-1].translate(_IN_SCRIPT),
    lambda name: name.replace('"', '""'),  # CSV
)
"""The ways in which a name comes to stand in a text."""

_active: Pseudonyms | None = None


class Pseudonyms:
    """The names of one project, kept in a file of its own that only its owner can read.

    Args:
        file: JSON with the key and, for whoever holds it, what each name stands for; made when missing.

    Raises:
        UsageError: the file is not one of ours or cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: dict[str, str] = {}  # what may stand in a text, and what stands there instead
        self._odd: list[str] = []  # of these, the ones that are more than one word
        self._parts: dict[
            str, str
        ] = {}  # folders and files that are more than one word, as they may be written
        self._lengths: list[int] = []  # of these, the longest first
        self._roots: list[str] = []
        self._words: set[str] = set()  # of these, the ones typed as one word
        self._names: dict[str, str] = {}
        if file.exists():
            self._load()
        else:
            self._key = secrets.token_bytes(32)
            self.save()

    def _load(self) -> None:
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            self._key, self._names = bytes.fromhex(content["key"]), dict(content["names"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                "is no file of names", self.file, "give a new file, or the one of before"
            ) from error

    def of(self, kind: str, original: str) -> str:
        """The name of a case, patient or site: its kind and twelve hexadecimal digits."""
        if original in self._names:  # already one of ours
            return original
        digest = hashlib.blake2b(f"{kind} {original}".encode(), key=self._key, digest_size=6).hexdigest()
        name = f"{kind}-{digest}"
        self._names[name] = original
        return name

    def original(self, name: str) -> str:
        """What a name stands for; anything else is given back."""
        return self._names.get(name, name)

    def know(self, originals: Iterable[str], kind: str = "case") -> None:
        """Hide these ids wherever they stand in a text."""
        for original in originals:
            if original and original not in self._known and original not in self._names:
                self._known[original] = self.of(kind, original)
                self._know_part(original, self._known[original])
                if not _TOKEN.fullmatch(original):
                    self._odd.append(original)
        self._odd.sort(key=len, reverse=True)

    def know_place(self, path: Path) -> None:
        """Hide where the data lie: the path as given and as it is; of a list of files also its folder.

        A path that was typed as one word, such as "data" or "heart", may be any word of a text: a setting, a class, a
        line of a script. In what is written it is hidden where more of a path follows it, and nobody writes it alone;
        in messages everywhere, unless it says nothing.
        """
        whole = path.expanduser().resolve()
        places = [path, path.expanduser(), path.expanduser().absolute(), whole]
        if whole.is_file():
            places += [places[2].parent, whole.parent]
        if not path.is_absolute() and str(path).isalpha():
            self._words |= {written(str(path)) for written in _WRITTEN}
        self._know_roots(map(str, places))

    def know_files(self, files: Iterable[Path]) -> None:
        """Hide these whole, wherever they lie and whatever characters are in their names and folders."""
        places = [file.absolute() for file in files]
        roots = {Path(root) for root in self._roots}
        away = {file.parent for file in places if roots.isdisjoint(file.parents)}
        self._know_roots(map(str, away))
        roots |= away
        for file in places:
            root = next(one for one in file.parents if one in roots)
            for part in file.relative_to(root).parts:
                self._know_part(part, self._part(part))

    def know_written(self, files: Iterable[str]) -> None:
        """Hide these paths, relative as they stand in a list, where a message names them."""
        for file in files:
            if len(parts := re.split(r"([/\\]+)", file)) > 1 and file not in self._known:
                self._known[file] = "".join(one if one[:1] in "/\\" else self._part(one) for one in parts)
                self._odd.append(file)
        self._odd.sort(key=len, reverse=True)

    def _know_roots(self, places: Iterable[str]) -> None:
        found = {written(place) for place in places for written in _WRITTEN}
        self._roots = sorted({*self._roots, *found} - {"", ".", "..", "/"}, key=len, reverse=True)

    def _know_part(self, part: str, shown: str) -> None:
        """Where its end cannot be seen in a text, it must be known."""
        for text in {written(part) for written in _WRITTEN}:
            if text not in self._parts and not _PART.fullmatch(text):
                self._parts[text] = shown
                if len(text) not in self._lengths:
                    self._lengths = sorted([*self._lengths, len(text)], reverse=True)

    def save(self) -> None:
        """Write the names down, readable by the owner alone."""
        temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        text = json.dumps({"key": self._key.hex(), "names": self._names}, indent=1, ensure_ascii=False)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
            ) as file:
                file.write(text + "\n")
            os.replace(temporary, self.file)
        except OSError as error:
            raise UsageError(
                f"cannot be written: {error.strerror}", self.file, "choose another place"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def clean(self, text: str) -> str:
        """A message without ids, file names and places."""
        text = self._without_roots(text, self._words_alone())
        for original in self._odd:
            if len(original) >= _SHORT:
                text = text.replace(original, self._known[original])
        return _TOKEN.sub(lambda match: self._word(match[0], _SHORT), text)

    def clean_paths(self, text: str) -> str:
        """A text without paths of the data; other words stay as they are, since they may be settings."""
        return self._without_roots(text, set())

    def _words_alone(self) -> set[str]:
        """Typed places of one word that say whose data they are."""
        return {
            word for word in self._words
            if not _PLACES.match(word) and not _ORDINARY.fullmatch(word)
        }  # fmt: skip

    def _without_roots(self, text: str, alone: set[str]) -> str:
        """Without paths of the data; those of one word where a path goes on behind them, these also `alone`."""
        found, done = [], 0
        for match in _any_of(tuple(self._roots)).finditer(text):
            if match.start() < done or _GOES_ON.match(text, match.end()):
                continue
            if match[0] in self._words and (
                _GOES_BEFORE.match(text, max(match.start() - 1, 0), match.start())
                or not (match[0] in alone or _SEPARATOR.match(text, match.end()))
            ):
                continue
            below, end = self._below(text, match.end())
            found += [text[done : match.start()], "DATA", below]
            done = end
        text = "".join([*found, text[done:]])
        for parent in self._parents():
            text = text.replace(f"{parent}{os.sep}", f"...{os.sep}")
        return text

    def _parents(self) -> list[str]:
        folders = {str(one) for root in self._roots for one in Path(root).parents if len(one.parts) > 2}
        return sorted(folders, key=len, reverse=True)

    def _below(self, text: str, at: int) -> tuple[str, int]:
        """What stands in a text from `at` on as the rest of a path, with its names hidden, and where it ends."""
        found = ""
        while separator := _SEPARATOR.match(text, at):
            shown, at = self._named(text, separator.end())
            found += separator[0] + shown
        return found, at

    def _named(self, text: str, at: int) -> tuple[str, int]:
        """The name of a folder or file that begins at `at`, hidden, and where it ends."""
        for length in self._lengths:
            shown = self._parts.get(text[at : at + length])
            if shown and (ending := _ENDING.match(text, at + length)):
                return shown + ending[0], ending.end()
        part = _PART.match(text, at)
        assert part is not None
        return self._part(part[0]) if part[0] else "", part.end()

    def _part(self, part: str) -> str:
        word = self._word(part, 0)
        if word != part or _PLACES.match(part) or part in ("", ".", "..", "dataset.json", "maskmend.json"):
            return word
        return self.of("file", part)

    def _word(self, word: str, least: int) -> str:
        """The word with the id in it replaced: a.nii.gz and a_0001.png are files of the case a."""
        stem, ending = word.rstrip("."), word[len(word.rstrip(".")) :]
        for _ in range(3):
            for base in (stem, re.sub(r"_\d{4}$", "", stem)):
                if base in self._known and (len(base) >= least or ending.strip(".")):
                    return self._known[base] + stem[len(base) :] + ending
            cut, dot, suffix = stem.rpartition(".")
            if not dot or not cut:
                break
            stem, ending = cut, f".{suffix}{ending}"
        return word


@lru_cache(maxsize=4)
def _any_of(places: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the first of these, the longest first; nothing where there are none."""
    return re.compile("|".join(map(re.escape, places)) or "(?!)")


def active() -> Pseudonyms | None:
    """The names in use, None where ids are shown as they are."""
    return _active


def start(file: Path, out: Path | None = None) -> None:
    """Use names from now on in this process.

    Args:
        file: see `Pseudonyms`.
        out: where results go; the file of names must lie elsewhere, or it would be passed on with them.

    Raises:
        UsageError: the file lies in `out`, or is none of ours.
    """
    global _active
    if out is not None and out.resolve() in file.expanduser().resolve().parents:
        raise UsageError(
            "would lie among the results that it is to protect", file, "keep it in another folder"
        )
    _active = Pseudonyms(file.expanduser())
    hide_with(_active.clean)


def adopt(names: Pseudonyms | None) -> None:
    """Use the names of the process that started this one; it is that one which writes them down."""
    global _active
    _active = names
    hide_with(None if names is None else names.clean)


def stop() -> None:
    """Show ids again; names met so far are written down."""
    global _active
    if _active is not None:
        _active.save()
    _active = None
    hide_with(None)


@contextmanager
def pseudonyms(file: Path | str, out: Path | str | None = None) -> Iterator[Pseudonyms]:
    """`with pseudonyms("names.json"): train(...)`: what `--phi-safe` does on the command line."""
    start(Path(file), None if out is None else Path(out))
    try:
        assert _active is not None
        yield _active
    finally:
        stop()


def title_of(root: Path) -> str:
    """What a data set is called in a heading: its folder's name, unless names are hidden."""
    if _active is not None:
        return "the data set"
    return root.stem if root.is_file() else root.name


def clean_paths(text: str) -> str:
    """A text to be written, without paths of the data while names are in use."""
    return text if _active is None else _active.clean_paths(text)
