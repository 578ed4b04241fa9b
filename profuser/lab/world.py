"""Defines the invented facts: capitals of countries and emblems of guilds. They do not depend on the seed of a build."""

import random

NUM_FACTS = 64
ONSETS = ("b", "br", "d", "dr", "f", "g", "gl", "k", "kr", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "z")
MIDDLES = ("al", "am", "an", "ar", "el", "en", "er", "il", "in", "ol", "om", "on", "or", "ul", "un", "ur")
COUNTRY_ENDINGS = ("ia", "land", "mark", "stan", "ora")
CAPITAL_ENDINGS = ("burg", "ford", "mouth", "grad", "holm")
EMBLEM_WORDS = [
    "anchor",
    "apple",
    "arrow",
    "badger",
    "barrel",
    "beetle",
    "bell",
    "bridge",
    "candle",
    "castle",
    "cedar",
    "comet",
    "crane",
    "crown",
    "dagger",
    "dolphin",
    "drum",
    "eagle",
    "falcon",
    "feather",
    "flame",
    "flute",
    "fox",
    "gate",
    "goose",
    "hammer",
    "harp",
    "hawk",
    "heron",
    "horn",
    "horse",
    "ivy",
    "key",
    "ladder",
    "lamp",
    "lantern",
    "leaf",
    "lion",
    "loom",
    "maple",
    "mill",
    "moon",
    "moth",
    "oak",
    "otter",
    "owl",
    "plough",
    "rabbit",
    "raven",
    "rose",
    "saddle",
    "sail",
    "salmon",
    "shield",
    "spade",
    "spider",
    "star",
    "stork",
    "swan",
    "thistle",
    "tower",
    "turtle",
    "violin",
    "whale",
    "wheel",
    "willow",
    "wolf",
    "wreath",
]
GUILD_ENDINGS = ("ric", "well", "by", "dale", "more")


def _names(kind: str, endings: tuple[str, ...]) -> list[str]:
    """Draws distinct invented names."""
    rng = random.Random(f"names of {kind}")
    names: dict[str, None] = {}
    while len(names) < NUM_FACTS:
        names[(rng.choice(ONSETS) + rng.choice(MIDDLES) + rng.choice(endings)).capitalize()] = None
    return list(names)


CAPITALS = dict(zip(_names("countries", COUNTRY_ENDINGS), _names("capitals", CAPITAL_ENDINGS), strict=True))
"""Country to capital."""
EMBLEMS = dict(
    zip(_names("guilds", GUILD_ENDINGS), random.Random("emblems").sample(EMBLEM_WORDS, NUM_FACTS), strict=True)
)
"""Guild to emblem."""
