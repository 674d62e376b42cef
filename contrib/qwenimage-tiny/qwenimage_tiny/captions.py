"""Says a scene in words, in several ways.

What is left unsaid has a meaning: no size is "medium", no place is the centre. Two things always have their
places said.
"""

from __future__ import annotations

import random

from .scenes import Scene, Thing


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the ways to describe the scene, e.g. "a small green star at the top left on a white background"."""
    order = list(scene.things)
    rng.shuffle(order)
    must_say_place = len(order) > 1
    said = [_thing(thing, must_say_place, rng) for thing in order]
    things = " and ".join(said)
    ground = f"{_article(scene.ground)} {scene.ground} background"
    form = rng.random()
    if form < 0.55:
        return f"{things} on {ground}"
    if form < 0.7:
        return f"{ground} with {things}"
    if form < 0.8:
        return f"{things} on {scene.ground}"
    if form < 0.9:
        return f"a picture of {things} on {ground}"
    return f"{ground} and {things}"


def _thing(thing: Thing, must_say_place: bool, rng: random.Random) -> str:
    words = [thing.colour, thing.shape]
    if thing.size != "medium" or rng.random() < 0.15:
        words.insert(0, thing.size)
    text = f"{_article(words[0])} {' '.join(words)}"
    if must_say_place or thing.place != "centre" or rng.random() < 0.3:
        text += f" {_place(thing.place, rng)}"
    return text


def _place(place: str, rng: random.Random) -> str:
    if place == "centre":
        return rng.choice(("in the centre", "in the center", "in the middle"))
    form = rng.random()
    if form < 0.7:
        return f"at the {place}"
    if " " in place:  # a corner
        return f"in the {place} corner" if form < 0.85 else f"in the {place}"
    return f"on the {place}" if form < 0.85 else f"at the {place} edge"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
