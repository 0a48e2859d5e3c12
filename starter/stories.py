"""Tiny stories: asked for in a chat, or as plain prose without any chat around them."""

from random import Random

from starter.words import (
    ADJECTIVES,
    FAMILY,
    FOODS,
    NAMES,
    PLACES,
    SEASONS,
    Message,
    article,
    capital,
    one,
    plural,
    turn,
)

HEROES: dict[str, str] = {
    "dog": "it", "cat": "it", "mouse": "it", "bear": "it", "bird": "it", "fox": "it", "rabbit": "it", "horse": "it", "frog": "it", "lion": "it",
    "owl": "it", "king": "he", "queen": "she", "girl": "she", "boy": "he", "farmer": "he", "robot": "it", "dragon": "it", "princess": "she",
    "baker": "she", "fish": "it", "elephant": "it", "wolf": "it", "sailor": "he", "teacher": "she",
}  # fmt: skip
_HIS = {"it": "its", "he": "his", "she": "her"}
_HIM = {"it": "it", "he": "him", "she": "her"}
_HOMES = ("in a small house", "in a dark forest", "near a river", "on a high mountain", "in a quiet village", "beside the sea", "in an old castle",
          "in a big city", "under a tall tree", "on a farm")  # fmt: skip
_LOST = ("ball", "key", "hat", "book", "lamp", "coin", "ring", "map", "letter", "cup", "blanket", "drum")
_FINDS = (
    "under a leaf",
    "behind a tree",
    "in the tall grass",
    "beside the road",
    "in an old box",
    "near the water",
    "under the bed",
)
_MORALS = ("They lived happily ever after.", "From that day on, they were the best of friends.", "That night everybody slept very well.",
           "And that is the end of the story.", "It was the best day of all.")  # fmt: skip


_FEELINGS = frozenset(
    """happy quiet kind clever brave funny gentle careful busy lucky tired hungry curious friendly""".split()
)


def story(rng: Random, hero: str) -> str:
    """A story of four to six sentences about one hero."""
    he = HEROES[hero]
    his, him = _HIS[he], _HIM[he]
    adjective = one(rng, "little", "brave", "clever", "kind", "old", "funny", "lonely", "happy", "curious", "small")
    friend = rng.choice([name for name in HEROES if name != hero])
    thing, food = rng.choice(_LOST), one(rng, "bread", "cake", "honey", "soup", "fruit", "cheese")
    lines = [
        one(rng, "Once upon a time there was", "There once was", "Long ago there lived")
        + f" {article(adjective + ' ' + hero)}."
    ]
    lines.append(f"{one(rng, f'The {hero}', capital(he))} lived {rng.choice(_HOMES)}.")
    plot = rng.randrange(4)
    if plot == 0:
        lines += [f"One day {he} lost {his} {thing}.", f"{capital(he)} looked everywhere, but {he} could not find it.",
                  f"Then {article(friend)} came and helped {him}.", f"Together they found the {thing} {rng.choice(_FINDS)}."]  # fmt: skip
    elif plot == 1:
        lines += [f"One morning {he} met {article(friend)} who was very hungry.", f"The {hero} gave the {friend} some {food}.",
                  f"\"Thank you,\" said the {friend}. \"You are very kind.\""]  # fmt: skip
    elif plot == 2:
        lines += [f"Every day {he} looked at the sky and wanted to see the world.", f"So one day {he} packed some {food} and went away.",
                  f"On the way {he} met {article(friend)}, and they walked on together.", "They saw rivers, hills and the wide blue sea."]  # fmt: skip
    else:
        lines += [f"One night there was a big storm, and the {hero} was afraid.", f"A {one(rng, 'kind', 'brave', 'gentle')} {friend} came to the door.",
                  f"\"Do not be afraid,\" said the {friend}. \"I will stay with you.\"", "In the morning the sun came out again."]  # fmt: skip
    return " ".join([*lines, rng.choice(_MORALS)])


def ask_story(rng: Random) -> list[Message]:
    """A request for a story, about a given hero or any."""
    hero = rng.choice(list(HEROES))
    if rng.random() < 0.4:
        ask = one(rng, "Tell me a story.", "Tell me a story", "Can you tell me a story?", "Please tell me a short story.", "I want to hear a story.",
                  "Do you know a story?", "Write a story.", "Tell me another story.", "Tell me something nice.")  # fmt: skip
        return turn(ask, story(rng, hero))
    whom = article(hero)
    ask = one(rng, f"Tell me a story about {whom}.", f"Tell me a story about {whom}.", f"Write a story about {whom}.", f"Can you tell me a story about {whom}?",
              f"I would like to hear a story about {whom}.", f"Please write a short story about {whom}.", f"Do you know a story about {whom}?")  # fmt: skip
    return turn(ask, story(rng, hero))


def joke(rng: Random) -> list[Message]:
    """A joke, or a small rhyme."""
    if rng.random() < 0.5:
        ask = one(
            rng,
            "Tell me a joke.",
            "Do you know a joke?",
            "Make me laugh.",
            "Can you tell me a joke?",
            "Say something funny.",
        )
        return turn(ask, one(rng, "Why did the cow cross the road? It wanted to go to the moo-vies!",
                             "What do you call a bear with no teeth? A gummy bear!",
                             "Why is the book of numbers so sad? It has too many problems."))  # fmt: skip
    ask = one(
        rng,
        "Write a poem.",
        "Tell me a poem.",
        "Can you write a poem?",
        "Write me a short poem.",
        "Do you know a rhyme?",
    )
    return turn(ask, one(rng, "The sun is warm, the sky is blue, the day is good, and so are you.",
                         "A little cat sat in the sun and had a lot of time and fun."))  # fmt: skip


def diary(rng: Random) -> str:
    """A paragraph of plain prose about an ordinary day."""
    name, who, food = rng.choice(NAMES), rng.choice(FAMILY), rng.choice(FOODS)
    place, season = rng.choice(PLACES), rng.choice(SEASONS)
    adjective, other = rng.sample([word for word in ADJECTIVES if word not in _FEELINGS], 2)
    pet = (
        one(rng, "small", "clever", "lazy", "friendly", "old", "funny", "black")
        + " "
        + one(rng, "cat", "dog", "bird", "rabbit")
    )
    thing, kind = rng.choice(_LOST), one(rng, "kind", "old", "good", "dear")
    lines = [
        one(rng, f"{name} lives in {place} with {article(pet)}.", f"It was a {one(rng, 'warm', 'cold', 'quiet')} day in {season}.",
            f"{name} woke up early and opened the window."),
        one(rng, f"In the morning {name} ate {food} with a friend.", f"{name} went to the market and bought {food}.",
            f"{name} wrote a long letter to {article(kind)} {who}."),
        one(rng, f"At the shop there was {article(other + ' ' + thing)}, and {name} bought it at once.", f"On the way home {name} found {article(other + ' ' + thing)}.",
            f"The {plural(thing)} in the window were {adjective} and {other}."),
        one(rng, "In the afternoon it began to rain, so everybody stayed inside.", "The sun was shining, and the birds were singing in the trees.",
            "People were walking through the streets and talking about the weather."),
        one(rng, f"In the evening {name} told the story to the whole family.", f"At night {name} sat by the fire and read a book.",
            "When the stars came out, the town was quiet again."),
    ]  # fmt: skip
    return " ".join(lines)


def prose(rng: Random) -> str:
    """One to four paragraphs without chat markup."""
    parts = [
        story(rng, rng.choice(list(HEROES))) if rng.random() < 0.5 else diary(rng)
        for _ in range(rng.choice([1, 1, 2, 4]))
    ]
    return "\n\n".join(parts)
