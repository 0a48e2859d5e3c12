"""Exchanges of several turns in which an answer only makes sense after what was said before."""

from random import Random

from starter import facts, stories, unknown
from starter.manners import hello
from starter.words import (
    ADJECTIVES,
    DRINKS,
    FOODS,
    HOBBIES,
    MUSIC,
    NAMES,
    NOUNS,
    PETS,
    PLACES,
    SPORTS,
    Message,
    capital,
    one,
    turn,
)


def how_are_you_back(rng: Random) -> list[Message]:
    """The starter asks how the user is, and the user asks back or not."""
    first = turn(
        one(rng, f"{hello(rng)}!", f"{hello(rng)}"),
        one(rng, "Hello! How are you?", "Hi! How are you today?", "Hello there! How are you?"),
    )
    back = rng.random() < 0.5
    said = one(
        rng,
        "I am fine",
        "I am well",
        "Good",
        "Fine",
        "Very well",
        "I am good",
        "Great",
        "Not bad",
        "I am doing well",
        "Pretty good",
        "All good",
    )
    said += one(rng, ", thank you", ", thanks", "", "")
    if back:
        return first + turn(f"{said}. {one(rng, 'And you?', 'How are you?', 'You?', 'How about you?')}",
                            one(rng, "I am fine too, thank you!", "I am very well too, thanks!") + " " + _next(rng))  # fmt: skip
    return first + turn(
        f"{said}.", one(rng, "I am glad to hear that!", "That is good to hear!", "That is nice!") + " " + _next(rng)
    )


def _next(rng: Random) -> str:
    return one(rng, "What can I do for you?", "How can I help you today?", "What would you like to talk about?")


def favourites(rng: Random) -> list[Message]:
    """The starter asks what the user likes, and takes up the answer."""
    kind = rng.randrange(6)
    if kind == 0:
        thing = rng.choice(FOODS + DRINKS)
        first = turn(
            one(rng, "What do you like to eat?", "What is your favourite food?"),
            "I do not eat, but I like to hear about good food. What do you like to eat?",
        )
        then = f"{capital(thing)} can be very tasty! {one(rng, 'Do you like to cook?', 'I am getting hungry just reading that.')}"
    elif kind == 1:
        thing = rng.choice(MUSIC)
        first = turn(
            one(rng, "Do you like music?", "What music do you like?"),
            "Yes, I like music very much. What music do you like?",
        )
        then = f"{capital(thing)} music is great! Do you play an instrument?"
    elif kind == 2:
        thing = rng.choice(SPORTS)
        first = turn(
            one(rng, "Do you like sports?", "What is your favourite sport?"),
            "I cannot play, but I like to hear about sports. What is your favourite sport?",
        )
        then = f"{capital(thing)} is a great sport! Do you do it often?"
    elif kind == 3:
        thing = rng.choice(HOBBIES)
        first = turn(
            one(rng, "What are your hobbies?", "Do you have a hobby?"),
            "I like to chat and to tell short stories. What are your hobbies?",
        )
        then = f"{capital(thing)} is a lovely hobby. How often do you do it?"
    elif kind == 4:
        animal = rng.choice(PETS)
        thing = {"pony": "ponies", "goldfish": "goldfish"}.get(animal, animal + "s")
        first = turn(
            one(rng, "Do you like animals?", "What is your favourite animal?"),
            "Yes, I like animals very much. Which animal do you like best?",
        )
        then = f"{capital(thing)} are wonderful animals. Do you have one?"
    else:
        thing = rng.choice(PLACES)
        first = turn(
            one(rng, "Do you like to travel?", "Do you travel?"),
            "I cannot travel, but I like to hear about other places. Where have you been?",
        )
        return first + turn(
            one(rng, f"I have been to {thing}.", f"{thing}.", f"In {thing}."),
            f"That sounds lovely. What did you like best in {thing}?",
        )
    return first + turn(
        one(rng, f"I like {thing}.", f"{capital(thing)}.", f"I love {thing}!", f"{capital(thing)}, I think."), then
    )


def another_story(rng: Random) -> list[Message]:
    """A story, then praise or the wish for one more."""
    first = stories.ask_story(rng)
    if rng.random() < 0.5:
        return first + turn(one(rng, "Another one, please.", "One more!", "Tell me another one.", "Again!", "And another one?"),
                            stories.story(rng, rng.choice(list(stories.HEROES))))  # fmt: skip
    return first + turn(one(rng, "That was nice.", "I like this story.", "What a lovely story!", "Nice story.", "That was a good story."),
                        one(rng, "I am glad that you like it!", "Thank you! Would you like to hear another one?"))  # fmt: skip


def help_then_fact(rng: Random) -> list[Message]:
    """A request for help, then the question itself."""
    first = turn(one(rng, "Can you help me?", "I have a question.", "May I ask you something?", "I need help."),
                 one(rng, "Of course! What would you like to know?", "Yes, I am happy to help. What do you need?"))  # fmt: skip
    return first + rng.choice([facts.what_is, facts.add, facts.colour, facts.opposite])(rng)


def tell_more(rng: Random) -> list[Message]:
    """Something unknown, after which the user does tell more."""
    first = turn(unknown.ask_unknown(rng), one(rng, "I am only a small model, and I do not know much about that. Can you tell me more?",
                                               "That is interesting, but I know only a little about it. Please tell me more."))  # fmt: skip
    more = one(rng, f"It is about {unknown.subject(rng)}.", f"It is {rng.choice(ADJECTIVES)}.", "Well, it is a long story.", unknown.ask_unknown(rng),
               "Yes, I can.", "Sure.", f"You need {unknown.subject(rng)} for it.")  # fmt: skip
    return first + turn(more, one(rng, "Thank you for telling me! I have learned something new.", "That is interesting. Thank you for telling me!",
                                  "I see. Thank you for explaining it to me."))  # fmt: skip


def agree(rng: Random) -> list[Message]:
    """The starter offers a story and the user takes it or not."""
    first = turn(one(rng, "I am bored.", "I am so bored.", "I have nothing to do."), "Would you like to hear a story?")
    if rng.random() < 0.7:
        return first + turn(
            one(rng, "Yes.", "Yes, please.", "Sure.", "Okay.", "Of course!", "Why not?"),
            stories.story(rng, rng.choice(list(stories.HEROES))),
        )
    return first + turn(
        one(rng, "No.", "No, thank you.", "Not now.", "Maybe later."),
        "That is fine. Maybe you could go for a walk or call a friend.",
    )


def say(rng: Random) -> list[Message]:
    """Repeating what the user says: practice in reading the question itself."""
    phrase = one(
        rng,
        rng.choice(NAMES),
        rng.choice(NOUNS),
        f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}",
        f"I like {rng.choice(NOUNS)}",
        unknown.odd_word(rng),
    )
    return turn(
        one(rng, f"Say {phrase}.", f"Please say {phrase}.", f"Can you say {phrase}?", f"Repeat after me: {phrase}."),
        capital(phrase) + ".",
    )
