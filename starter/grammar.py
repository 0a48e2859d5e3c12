"""The grammar: every topic, how often it comes up, and how topics become conversations and documents."""

from collections.abc import Callable
from random import Random

from starter import exchanges, facts, manners, smalltalk, stories, unknown
from starter.words import Message

Topic = Callable[[Random], list[Message]]

TOPICS: dict[Topic, float] = {
    manners.greeting: 7, manners.how_are_you: 4, manners.my_feeling: 3, manners.own_name: 6, manners.my_name: 4, manners.about_people: 3,
    manners.thanks: 4, manners.farewell: 4, manners.ask_help: 3,
    facts.what_is: 11, facts.colour: 3, facts.sound: 2, facts.opposite: 3, facts.where: 3, facts.calendar: 4, facts.count: 2, facts.add: 26,
    facts.yes_no: 3,
    smalltalk.weather: 3, smalltalk.food: 3, smalltalk.hobby: 3, smalltalk.pet: 3, smalltalk.music: 3, smalltalk.travel: 2, smalltalk.work: 2,
    smalltalk.errands: 3, smalltalk.health: 2,
    stories.ask_story: 6, stories.joke: 1,
    unknown.unknown: 18, exchanges.tell_more: 2,
    exchanges.how_are_you_back: 3, exchanges.favourites: 3, exchanges.another_story: 1, exchanges.help_then_fact: 2, exchanges.agree: 1,
    exchanges.say: 3,
}  # fmt: skip
_SHORTER = (("What is", "What's"), ("I am", "I'm"), ("Do not", "Don't"), ("do not", "don't"), ("cannot", "can't"), ("It is", "It's"),
            ("I would", "I'd"), ("How is", "How's"), ("Let us", "Let's"), ("you are", "you're"))  # fmt: skip
# Chance that a conversation has this many turns; a few are long so that positions near the cutoff are trained too.
_TURNS = {1: 52, 2: 22, 3: 12, 4: 8, 8: 4, 14: 2}


def typo(rng: Random, text: str) -> str:
    """`text` with one letter lost, doubled or swapped with the next."""
    at = rng.randrange(len(text))
    if not text[at].isalpha():
        return text
    before, letter, rest = text[:at], text[at], text[at + 1 :]
    return before + rng.choice([rest, letter + letter + rest, rest[:1] + letter + rest[1:]])


def casual(rng: Random, text: str) -> str:
    """`text` as people type it in a hurry: contracted, in lower case, with or without its marks."""
    if rng.random() < 0.5:
        for long, short in _SHORTER:
            text = text.replace(long, short)
    style = rng.random()
    if style < 0.35:
        text = text.lower()
    elif style < 0.38:
        text = text.upper()
    if rng.random() < 0.45:
        text = text.rstrip("?.!") or text
    if rng.random() < 0.06:
        text = typo(rng, text)
    if rng.random() < 0.1:
        text = text.replace("'", "").replace(",", "")
    return text


def conversation(rng: Random) -> list[Message]:
    """A chat of one to fourteen turns, sometimes opened by a system message."""
    topics, weights = list(TOPICS), list(TOPICS.values())
    turns = rng.choices(list(_TURNS), list(_TURNS.values()))[0]
    messages = manners.system_persona(rng) if rng.random() < 0.12 else []
    for number in range(turns):
        topic = rng.choices(topics, weights)[0]
        if turns > 1 and number == 0 and rng.random() < 0.5:
            topic = manners.greeting
        elif turns > 1 and number == turns - 1 and rng.random() < 0.4:
            topic = rng.choice([manners.thanks, manners.farewell])
        messages += topic(rng)
    for message in messages:
        if message["role"] == "user" and rng.random() < 0.5:
            message["content"] = casual(rng, message["content"])
    return messages


def document(rng: Random) -> list[Message] | str:
    """One training document: a conversation, or now and then plain prose."""
    return stories.prose(rng) if rng.random() < 0.06 else conversation(rng)
