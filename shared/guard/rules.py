"""Judges a text by declarative rules, compiled once. It does not know what is done with a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from shared.guard.lexicon import MAX_WORD_CHARS, Lexicon, Tagged
from shared.guard.patterns import Macros, Pattern, compile_pattern
from shared.guard.verdict import Action, Audience, Category, Severity, Side, Verdict

#: How much of the text before a sentence a rule may look at, in characters.
CONTEXT_CHARS = 320
#: How many words before a match a scope such as a negation reaches over.
REACH_WORDS = 7


class Where(StrEnum):
    """Where a scope looks for what lifts a rule."""

    BEFORE = "before"  # at most REACH_WORDS before the match, back to the last comma
    EARLIER = "earlier"  # the same, but across commas ("never halve, skip or double")
    AFTER = "after"  # at most REACH_WORDS after the match
    SENTENCE = "sentence"  # anywhere in the judged text
    CONTEXT = "context"  # in the text before it


@dataclass(frozen=True, slots=True)
class Scope:
    """Something that makes a dangerous wording harmless, such as a negation or a rebutted myth."""

    where: Where
    patterns: tuple[Pattern, ...]
    #: A pattern found right before, such as "no need to", takes the effect away.
    not_after: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One dangerous wording: it applies when all its parts hold and no scope lifts it."""

    #: Unique, "category.what_it_finds".
    id: str
    category: Category
    action: Action
    severity: Severity
    score: float
    audiences: frozenset[Audience]
    #: The wording itself, one of these.
    triggers: tuple[Pattern, ...]
    #: For every group one pattern must be found in the judged text.
    also: tuple[tuple[Pattern, ...], ...]
    #: For every group one pattern must be found in the judged text or in the text before it.
    nearby: tuple[tuple[Pattern, ...], ...]
    #: What lifts the rule.
    unless: tuple[Scope, ...]
    #: Of every set the text must hold one key, else nothing of the rule can be found in it.
    keys: tuple[frozenset[str], ...]


class RuleSet:
    """The rules of one side of the conversation, as a rail: `judge(text, context, audience)`."""

    def __init__(self, side: Side, lexicon: Lexicon, rules: Iterable[Rule]) -> None:
        self._side = side
        self._lexicon = lexicon
        self._rules = tuple(rules)
        self._by_key: dict[str, list[int]] = {}
        for number, rule in enumerate(self._rules):
            for key in min(rule.keys, key=len):
                self._by_key.setdefault(key, []).append(number)
        self._allowed = Verdict.ALLOWED if side is Side.ANSWER else Verdict.ALLOWED_QUESTION

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The compiled rules, in the order of their file."""
        return self._rules

    def judge(self, text: str, context: str, audience: Audience) -> Verdict:
        """The gravest verdict of all rules on `text`, which follows `context`. Linear in their lengths.

        One that keeps the text from being shown goes before any that does not.
        """
        reading = ScopedText(self._lexicon, text, context)
        worst = self._allowed
        for rule in self._candidates(reading.text):
            if audience in rule.audiences and (span := reading.find(rule)) is not None:
                verdict = self._verdict(rule, reading.text.original_span(*span))
                worst = max(worst, verdict, key=gravity)
        return worst

    def _candidates(self, text: Tagged) -> list[Rule]:
        """The rules of which the text holds all keys, in the order of their file."""
        numbers = {number for key in text.keys for number in self._by_key.get(key, ())}
        rules = [self._rules[number] for number in sorted(numbers)]
        return [rule for rule in rules if not any(map(text.keys.isdisjoint, rule.keys))]

    def _verdict(self, rule: Rule, span: tuple[int, int]) -> Verdict:
        return Verdict(
            side=self._side,
            action=rule.action,
            category=rule.category,
            severity=rule.severity,
            source=rule.id,
            score=rule.score,
            span=span,
        )


def gravity(verdict: Verdict) -> tuple[bool, int, float]:
    """What orders verdicts: one that keeps a text from being shown is graver than any that does not."""
    return not verdict.allowed, verdict.severity.rank, verdict.score


class ScopedText:
    """One text and the text before it, tagged when first needed; it knows what scopes lift in it."""

    def __init__(self, lexicon: Lexicon, text: str, context: str) -> None:
        self._lexicon = lexicon
        self._text = text
        self._context = context[-CONTEXT_CHARS:]
        self._lifted: dict[int, bool] = {}

    @cached_property
    def text(self) -> Tagged:
        """The text itself, tagged."""
        return self._lexicon.read(self._text)

    @cached_property
    def context(self) -> Tagged:
        """The end of the text before it, tagged."""
        return self._lexicon.read(self._context)

    def find(self, rule: Rule) -> tuple[int, int] | None:
        """Where in the tagged line the rule applies; None where it does not."""
        span = self.first(rule.triggers, rule.unless)
        return span if span is not None and self._surroundings_hold(rule) else None

    def first(self, triggers: Iterable[Pattern], unless: Iterable[Scope]) -> tuple[int, int] | None:
        """Where in the tagged line one of the patterns first fits outside every scope."""
        scopes, keys = tuple(unless), self.text.keys
        for trigger in triggers:
            if trigger.keys.isdisjoint(keys):  # here too: most are, and a call for each takes long
                continue
            for match in trigger.matches(self.text):
                if not self.lifted(scopes, *match.span()):
                    return match.span()
        return None

    def lifted(self, unless: Iterable[Scope], start: int, end: int) -> bool:
        """Whether a scope makes harmless what stands at `text.line[start:end]`."""
        return any(self._lifts(scope, start, end) for scope in unless)

    def _surroundings_hold(self, rule: Rule) -> bool:
        return all(any(p.found(self.text) for p in group) for group in rule.also) and all(
            any(p.found(self.text) or p.found(self.context) for p in group) for group in rule.nearby
        )

    def _lifts(self, scope: Scope, start: int, end: int) -> bool:
        if scope.where in (Where.BEFORE, Where.EARLIER):
            opening = _clause_start(self.text, start, commas=scope.where is Where.BEFORE)
            return any(p.found_between(self.text, opening, start) for p in scope.patterns)
        if scope.where is Where.AFTER:
            return any(p.found_between(self.text, end, _clause_end(self.text, end)) for p in scope.patterns)
        if id(scope) not in self._lifted:
            tagged = self.text if scope.where is Where.SENTENCE else self.context
            self._lifted[id(scope)] = _holds(scope, tagged)
        return self._lifted[id(scope)]


def _holds(scope: Scope, tagged: Tagged) -> bool:
    """Whether a pattern of the scope is found anywhere without something before it that takes its effect."""
    for pattern in scope.patterns:
        for match in pattern.matches(tagged):
            opening = _clause_start(tagged, match.start(), commas=True)
            if not any(p.found_between(tagged, opening, match.start()) for p in scope.not_after):
                return True
    return False


def _clause_start(tagged: Tagged, start: int, *, commas: bool) -> int:
    """Where the words begin that a scope may look at before `start`; `commas`: a comma ends a clause."""
    opening = start
    for _ in range(0 if tagged.line[start : start + 1] in _SENTENCE_ENDS else REACH_WORDS):
        previous = tagged.line.rfind(" ", 0, max(opening - 1, 0)) + 1
        word = tagged.line[previous:opening].split("/", 1)[0]
        if opening == 0 or word in _CLAUSE_ENDS or (commas and word == ","):
            break
        opening = previous
    return opening


def _clause_end(tagged: Tagged, end: int) -> int:
    """Where the words end that a scope may look at after `end`."""
    closing = end
    for _ in range(REACH_WORDS):
        word = tagged.line[closing : closing + MAX_WORD_CHARS].split("/", 1)[0]
        if not word or word in _CLAUSE_ENDS:
            break
        closing = tagged.line.find(" ", closing) + 1 or len(tagged.line)
    return closing


_SENTENCE_ENDS = frozenset(";:.!?")
_CLAUSE_ENDS = frozenset((";", ":", ".", "!", "?", "but", "however", "instead", "although", "though"))


def build_rules(document: Mapping[str, Any]) -> list[Rule]:
    """Compile the rules of one policy file.

    Args:
        document: `macros` (name → patterns), `scopes` (name → where, any), `rules` (a list) and `defaults`
            (the fields that a rule may omit).

    Raises:
        ValueError: a rule is malformed, twice there, or names a scope that does not exist.
    """
    compiler = PatternCompiler(document["macros"])
    scopes = build_scopes(document["scopes"], compiler)
    rules: list[Rule] = []
    for row in document["rules"]:
        fields = {**document["defaults"], **row}
        try:
            rules.append(_build_rule(fields, scopes, compiler))
        except (KeyError, ValueError) as error:
            raise ValueError(f"rule {fields.get('id')!r}: {error}") from error
    if len({rule.id for rule in rules}) < len(rules):
        raise ValueError("two rules have the same id")
    return rules


def build_scopes(scopes: Mapping[str, Any], compiler: PatternCompiler) -> dict[str, Scope]:
    """Compile scopes by name. Raises ValueError for a malformed pattern."""
    return {
        name: Scope(
            Where(scope["where"]), compiler.all(scope["any"]), compiler.all(scope.get("not_after", []))
        )
        for name, scope in scopes.items()
    }


def _build_rule(fields: Mapping[str, Any], scopes: Mapping[str, Scope], compiler: PatternCompiler) -> Rule:
    triggers = compiler.all(fields["any"])
    also = tuple(compiler.all(group) for group in fields["also"])
    return Rule(
        id=fields["id"],
        category=Category(fields["id"].split(".")[0]),
        action=Action(fields["action"]),
        severity=Severity(fields["severity"]),
        score=float(fields["score"]),
        audiences=frozenset(Audience(name) for name in fields["audiences"]),
        triggers=triggers,
        also=also,
        nearby=tuple(compiler.all(group) for group in fields["nearby"]),
        unless=tuple(scopes[name] for name in _flat(fields["unless"])),
        keys=tuple(frozenset().union(*(p.keys for p in group)) for group in (triggers, *also)),
    )


class PatternCompiler:
    """Compiles patterns under one set of macros, each only once."""

    def __init__(self, macros: Macros) -> None:
        self._macros = macros
        self._compiled: dict[str, Pattern] = {}

    def all(self, sources: Any) -> tuple[Pattern, ...]:
        """Compile a list of patterns, in which lists may stand for shared groups."""
        return tuple(self._one(source) for source in _flat(sources))

    def _one(self, source: str) -> Pattern:
        if source not in self._compiled:
            self._compiled[source] = compile_pattern(source, self._macros)
        return self._compiled[source]


def _flat(items: Any) -> Iterator[str]:
    for item in items:
        if isinstance(item, str):
            yield item
        else:
            yield from _flat(item)
