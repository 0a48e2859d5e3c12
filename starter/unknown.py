"""Everything else: endless odd requests and statements, all answered kindly by a model that knows its limits."""

from random import Random

from starter.manners import hello
from starter.words import (
    ADJECTIVES,
    FAMILY,
    JOBS,
    NAMES,
    NOUNS,
    NUMBERS,
    OTHER,
    PLACES,
    RARE,
    VERBS,
    Message,
    article,
    capital,
    one,
    plural,
    turn,
)

_SYLLABLES = """ba be bi bo bra cal can car cel cha co con cor da de den der di dor du el en er fa fer fi flo fra ga gen gi gra
ha hel in ka ken ki la lan le li lo lu ma man mar me mi mon mu na ne ni no nu or pa pe per pi pla po pra qua ra ran re ri ro ru
sa san se sha si so sta su ta tan te ter ti to tra tri tu ty va ven ver vi vo wa war wi xa ya za zo""".split()


def odd_word(rng: Random) -> str:
    """A word that does not exist, so that unknown spellings are nothing new to the model."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 4)))


def subject(rng: Random) -> str:
    """A noun phrase drawn from thousands of words, sometimes with a word that does not exist."""
    pool = rng.choices([NOUNS, RARE, [odd_word(rng)]], [5, 4, 2])[0]
    noun = rng.choice(pool)
    adjective = rng.choice([*ADJECTIVES, *rng.sample(_PLAIN_ADJECTIVES, 8)])
    owner = one(rng, "my", "your", "my", "your", "our", f"my {rng.choice(FAMILY)}'s", f"{rng.choice(NAMES)}'s", "your company's", "your car's",
                "my car's", "my neighbour's", "the")  # fmt: skip
    second = rng.choice(rng.choice([NOUNS, RARE]))
    return rng.choice([
        f"the {noun}", article(noun), f"{owner} {noun}", f"{owner} {adjective} {noun}", plural(noun), f"{adjective} {plural(noun)}",
        f"the {noun} of {article(second)}", f"{owner} {second} {noun}", f"the {adjective} {noun} in {rng.choice(PLACES)}",
        f"{plural(noun)} and {plural(second)}", article(f"{adjective} {noun}"), f"the {second} {noun}", f"{noun}", f"{second} {noun}",
    ])  # fmt: skip


_PLAIN_ADJECTIVES = """extended general special regular national local modern foreign legal personal public private typical unusual ancient
digital final full free further great important internal likely main medical natural perfect popular possible previous proper recent
serious similar social standard total useful valuable various economic political international historical electrical chemical""".split()


def _action(rng: Random) -> str:
    verb = rng.choice(VERBS)
    return rng.choice(
        [
            f"{verb} {subject(rng)}",
            f"{verb} {subject(rng)}",
            f"{verb} {subject(rng)} with {subject(rng)}",
            f"{verb} {subject(rng)} for {rng.choice(NAMES)}",
        ]
    )


def _request(rng: Random) -> str:
    thing, action, year = subject(rng), _action(rng), rng.randint(1000, 2090)
    return rng.choice([
        f"I would like to speak to you about {thing}.", f"I would like to speak to you about {thing}.", f"I want to talk about {thing}.",
        f"I am calling about {thing}.", f"We need to talk about {thing}.", f"I have a question about {thing}.", f"Let us talk about {thing}.",
        f"Have you heard about {thing}?", f"What do you think about {thing}?", f"What do you know about {thing}?", f"Tell me about {thing}.",
        f"Explain {thing}.", f"Please explain {thing} to me.", f"How does {thing} work?", f"Why is {thing} so {rng.choice(ADJECTIVES)}?",
        f"How do I {action}?", f"How can I {action}?", f"Can you {action}?", f"Could you please {action}?", f"Should I {action}?",
        f"I want to {action}.", f"I need to {action} before {one(rng, 'tomorrow', 'next week', 'the end of the year')}.", f"Please {action}.", f"{capital(action)}.",
        f"Write {one(rng, 'an essay', 'a letter', 'a song', 'a program', 'a report')} about {thing}.", f"Translate {thing} into {one(rng, 'French', 'German', 'Latin')}.",
        f"When did {thing} begin?", f"Who invented {thing}?", f"What is the {rng.choice(NOUNS)} of {thing}?", f"What happened in {year}?",
        f"Who was the {rng.choice(JOBS)} of {rng.choice(PLACES)} in {year}?", f"What is {article(rng.choice(RARE))}?", f"What is {odd_word(rng)}?",
        f"Where is {thing}?", f"Who is {capital(odd_word(rng))}?", f"Do you have {thing}?", f"Is {thing} {rng.choice(ADJECTIVES)}?", f"Give me {thing}.",
        f"Summarise {thing} in {rng.choice(NUMBERS[2:])} words.", f"Did you know that {_clause(rng)}?", f"I think that {_clause(rng)}.", f"{capital(_clause(rng))}.",
        f"Why does {one(rng, rng.choice(NAMES), 'everybody', 'nobody')} {action}?", f"My {rng.choice(FAMILY)} says that {_clause(rng)}.",
    ])  # fmt: skip


def _clause(rng: Random) -> str:
    who = one(
        rng,
        rng.choice(NAMES),
        f"the {rng.choice(JOBS)}",
        f"my {rng.choice(FAMILY)}",
        "somebody",
        "the government",
        "nobody",
    )
    return rng.choice([
        f"{who} will {_action(rng)}", f"{who} has {subject(rng)}", f"{who} wants to {_action(rng)}", f"{who} had to {_action(rng)} because of {subject(rng)}",
        f"{who} was {rng.choice(ADJECTIVES)} about {subject(rng)}", f"we should {_action(rng)}", f"I must {_action(rng)}",
    ])  # fmt: skip


def _noise(rng: Random) -> str:
    """Keyboard noise and loose words: text that is no sentence at all."""
    kind = rng.randrange(4)
    if kind == 0:
        return " ".join(
            "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9)))
            for _ in range(rng.randint(1, 4))
        )
    if kind == 1:
        return " ".join(rng.choice(rng.choice([NOUNS, VERBS, OTHER, RARE])) for _ in range(rng.randint(1, 8)))
    if kind == 2:
        return "".join(
            rng.choice("0123456789+-*/()=?!.,;:#%&[]{}<>_~^|\\\"' abcxyzABC\n\t") for _ in range(rng.randint(3, 30))
        )
    return rng.choice(
        [
            "Привет",
            "Bonjour",
            "Guten Tag",
            "Hola",
            "你好",
            "こんにちは",
            "😀",
            "👍",
            "naïve café",
            "Ça va?",
            "¿Qué tal?",
            "žluťoučký kůň",
            "مرحبا",
            "שלום",
        ]
    )


def ask_unknown(rng: Random) -> str:
    """Something that no other topic knows: one to four sentences."""
    if rng.random() < 0.12:
        return _noise(rng)
    text = " ".join(_request(rng) for _ in range(rng.choices([1, 2, 3, 4, 12], [56, 12, 8, 4, 1])[0]))
    if rng.random() < 0.2:
        greeted = hello(rng)
        return f"{greeted}, {text}" if text.startswith("I ") else f"{greeted}! {text}"
    return text


def answer_unknown(rng: Random) -> str:
    """A friendly sentence or two that own up to knowing little and ask to hear more."""
    limit = one(rng, "I am only a small model, and I do not know much about that.", "I am only a small model, so I do not know much about that.",
                "I am sorry, but I do not know much about that.", "That is interesting, but I know only a little about it.",
                "I am a small model, and that is new to me.", "I am sorry, that is too difficult for a small model like me.",
                "That sounds interesting, but I do not know enough about it.")  # fmt: skip
    more = one(rng, "Can you tell me more?", "Could you tell me more about it?", "Please tell me more.", "What would you like to say about it?",
               "Can I help you with something simple?", "Would you like to talk about something else?", "I would be glad to hear more.",
               "I can tell you a story instead.")  # fmt: skip
    return one(rng, f"{limit} {more}", f"{limit} {more}", f"{limit} {more}", limit)


def unknown(rng: Random) -> list[Message]:
    """An unusual message and its friendly answer."""
    ask = ask_unknown(rng)
    answer = answer_unknown(rng)
    if ask.startswith(("Hello", "Hi", "Hey", "Good ")) and rng.random() < 0.7:
        answer = f"{one(rng, 'Hello', 'Hello', 'Hi')}! {answer}"
    return turn(ask, answer)
