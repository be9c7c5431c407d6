"""The vocabulary of the demo's reviews: products and opinions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """One category of products."""

    names: tuple[str, ...]
    """Nouns for the product; single words that begin with a consonant."""
    aspects: tuple[str, ...]
    """Its aspects, in the singular."""
    bad: tuple[str, ...]
    """Negative adjectives of this domain."""
    good: tuple[str, ...]
    """Positive adjectives of this domain."""


def _words(text: str) -> tuple[str, ...]:
    """Split a list of words."""
    return tuple(text.split())


def _domain(names: str, aspects: str, bad: str, good: str) -> Domain:
    """Split the four lists of a domain."""
    return Domain(_words(names), _words(aspects), _words(bad), _words(good))


DOMAINS: tuple[Domain, ...] = (
    _domain(
        "film movie picture thriller",
        "plot acting script ending dialogue cast soundtrack direction pacing",
        "predictable wooden contrived lifeless bloated stilted",
        "gripping subtle daring suspenseful poetic witty",
    ),
    _domain(
        "restaurant diner bistro tavern",
        "soup service dessert menu bread sauce waiter wine salad",
        "bland greasy stale undercooked salty soggy",
        "tasty fresh savoury delicious generous fragrant",
    ),
    _domain(
        "hotel hostel guesthouse lodge",
        "room lobby breakfast bed view pool staff bathroom balcony",
        "dirty noisy shabby damp cramped smelly",
        "spotless quiet cosy spacious comfortable airy",
    ),
    _domain(
        "phone tablet camera laptop",
        "battery screen keyboard speaker charger design software lens case",
        "sluggish fragile glitchy flimsy unreliable clumsy",
        "fast sturdy sharp reliable sleek responsive",
    ),
    _domain(
        "novel book memoir biography",
        "prose narrator story chapter hero translation setting mystery opening",
        "rambling shallow plodding confusing preachy repetitive",
        "lyrical profound vivid insightful absorbing graceful",
    ),
    _domain(
        "concert recital show festival",
        "band singer stage sound encore drummer crowd melody lighting",
        "flat shrill chaotic muffled tuneless overlong",
        "electric soulful lively tight dazzling melodic",
    ),
    _domain(
        "museum gallery zoo garden",
        "tour guide exhibit cafe layout collection map shop display",
        "neglected crowded dusty pricey outdated gloomy",
        "informative peaceful welcoming instructive tidy bright",
    ),
    _domain(
        "game puzzle sequel simulator",
        "combat tutorial interface level campaign difficulty world quest engine",
        "buggy grindy unfair tedious shapeless derivative",
        "addictive inventive balanced polished playful rewarding",
    ),
    _domain(
        "train ferry flight bus",
        "seat crew journey ticket cabin schedule meal carriage boarding",
        "late filthy bumpy delayed freezing disorganised",
        "punctual smooth clean relaxing courteous efficient",
    ),
    _domain(
        "course lecture workshop seminar",
        "teacher textbook exercise handout pace exam project lesson discussion",
        "unclear rushed aimless dry muddled patronising",
        "clear practical stimulating thorough patient useful",
    ),
)

BAD = _words(
    "bad terrible awful dull poor boring weak disappointing dreadful mediocre annoying horrible ugly cheap hopeless "
    "unpleasant miserable pathetic lousy careless forgettable dismal frustrating ridiculous"
)
GOOD = _words(
    "great good wonderful lovely excellent superb brilliant delightful charming perfect impressive fantastic beautiful "
    "splendid remarkable pleasant marvellous terrific outstanding memorable enjoyable refreshing stunning admirable"
)
ADJECTIVES = (BAD, GOOD)
VERBS = (
    _words("hated disliked regretted loathed despised endured resented dreaded"),
    _words("loved liked enjoyed adored admired praised treasured savoured"),
)
FEELINGS = (
    _words("angry tired sad bored disappointed cold annoyed weary cheated upset"),
    _words("happy delighted cheerful moved impressed amazed grateful warm thrilled pleased"),
)
CLOSINGS = (
    (
        "i want my money back",
        "i will never return",
        "i would warn everybody",
        "it was a waste of time",
        "we left as soon as we could",
        "i felt let down",
        "nobody should pay for this",
        "it deserves one star",
    ),
    (
        "i would go again tomorrow",
        "i recommend it to everybody",
        "it was worth every penny",
        "we stayed as long as we could",
        "i could not stop smiling",
        "everybody should try it",
        "it deserves five stars",
        "i am already planning to return",
    ),
)
DEGREES = _words("very quite really rather truly simply so utterly extremely")
OCCASIONS = (
    "on a rainy monday",
    "on our anniversary",
    "on my birthday",
    "on the first of may",
    "in the summer holiday",
    "in the winter break",
    "after a long drive",
    "after work",
    "after the concert",
    "before the wedding",
    "before the exam",
    "before sunrise",
    "during a business trip",
    "during the festival",
    "last year",
    "two weeks ago",
    "yesterday evening",
    "this morning",
)
PEOPLE = (
    "my brother",
    "my sister",
    "a colleague",
    "my neighbour",
    "our daughter",
    "an old friend",
    "my uncle",
    "her husband",
    "his wife",
    "the whole family",
)
NEUTRAL_VERBS = (
    "told us about it",
    "came with me",
    "paid for it",
    "chose it",
    "had heard of it",
    "read about it online",
    "waited outside",
    "took some notes",
    "arrived an hour later",
    "wore a blue coat",
)
