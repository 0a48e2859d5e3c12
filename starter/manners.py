"""Greetings, names, feelings, thanks, farewells, offers of help, and what the starter says about itself."""

from random import Random

from starter.words import ADJECTIVES, FAMILY, JOBS, NAMES, PLACES, Message, article, capital, one, turn

HELLOS = (
    "Hello",
    "Hi",
    "Hey",
    "Good morning",
    "Good afternoon",
    "Good evening",
    "Hi there",
    "Hello there",
    "Hey there",
)


def hello(rng: Random) -> str:
    """A greeting without its closing mark, now and then addressed to someone."""
    weight = [6, 5, 3, 2, 1, 1, 3, 2, 1]
    return rng.choices(HELLOS, weight)[0]


def greeting(rng: Random) -> list[Message]:
    """A greeting, answered with a greeting and an offer of help."""
    word = hello(rng)
    ask = word + one(
        rng, "!", "!", ".", "", "!!", ", Graft!", ", my friend!", ", nice to meet you.", ", how is it going?"
    )
    if rng.random() < 0.1:
        ask = one(
            rng, "Greetings!", "Howdy!", "Yo!", "What's up?", "Is anybody there?", "Are you there?", "Hello hello!"
        )
    back = word if word.startswith("Good") else one(rng, "Hello", "Hi", "Hi there", "Hello there")
    if "how is it going" in ask:
        return turn(ask, f"{back}! {_fine(rng)} {one(rng, 'How are you?', 'What can I do for you?', 'And you?')}")
    return turn(ask, f"{back}! {offer(rng)}")


def offer(rng: Random) -> str:
    """A short polite offer of help, as a whole sentence."""
    return one(rng, "How can I help you today?", "How can I help you?", "What can I do for you today?",
               "It is nice to meet you. How can I help?", "How are you today?", "What would you like to talk about?",
               "It is good to hear from you. What would you like to know?", "I hope you are having a nice day.")  # fmt: skip


def _fine(rng: Random) -> str:
    return one(rng, "I am fine, thank you.", "I am doing well, thank you.", "I am very well, thank you for asking.",
               "I am well, thanks.", "I feel great today.", "Everything is fine here.")  # fmt: skip


def how_are_you(rng: Random) -> list[Message]:
    """How the starter is."""
    ask = one(rng, "How are you?", "How are you today?", "How are you doing?", "How do you feel?", "How is your day going?",
              "Are you well?", "Are you okay?", "How do you do?", "How have you been?", "How was your day?")  # fmt: skip
    if rng.random() < 0.25:
        ask = f"{hello(rng)}{one(rng, '!', ',')} {ask}"
    more = one(
        rng, "How are you?", "And how are you?", "How are you doing?", "How is your day?", "What can I do for you?"
    )
    return turn(ask, f"{_fine(rng)} {more}")


def my_feeling(rng: Random) -> list[Message]:
    """The user says how they feel."""
    good = rng.random() < 0.5
    if good:
        feeling = one(
            rng, "happy", "great", "fine", "good", "well", "wonderful", "excited", "very well", "okay", "relaxed"
        )
        answer = one(
            rng, "I am glad to hear that!", "That is wonderful!", "That is good to hear!", "I am happy for you!"
        )
        answer += " " + one(rng, "What made your day so good?", "What are you doing today?", "What can I do for you?",
                            "I hope the rest of your day is just as nice.")  # fmt: skip
    else:
        feeling = one(rng, "sad", "tired", "sick", "ill", "bored", "lonely", "angry", "worried", "cold", "hungry", "stressed",
                      "a bit down", "not so good", "very tired")  # fmt: skip
        answer = one(rng, "I am sorry to hear that.", "Oh, I am sorry.", "That does not sound nice.") + " "
        cure = {"tired": "A good sleep may help.", "very tired": "A good sleep may help.", "hungry": "Maybe you could eat something warm.",
                "cold": "A blanket and a cup of tea may help.", "bored": "Would you like to hear a story?",
                "sick": "Please rest and drink plenty of water.", "ill": "Please rest and drink plenty of water."}  # fmt: skip
        answer += cure.get(feeling, one(rng, "I hope you feel better soon.", "Would you like to talk about it?",
                                        "Is there anything I can do for you?"))  # fmt: skip
    start = one(rng, "I am", "I am", "I feel", "Today I am", "I am feeling")
    return turn(
        f"{start} {feeling}{one(rng, '.', '', ' today.' if not start.startswith('Today') else '.', '!')}", answer
    )


def own_name(rng: Random) -> list[Message]:
    """What the starter is called and what it is."""
    ask, answers = rng.choice(_ABOUT_SELF)
    return turn(rng.choice(ask), rng.choice(answers))


_NAME = ("My name is Graft Starter.", "I am called Graft Starter.", "My name is Graft Starter. I am a small language model.",
         "I am Graft Starter, a small language model.")  # fmt: skip
_ABOUT_SELF: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("What is your name?", "What's your name?", "What are you called?", "Tell me your name.", "Do you have a name?",
      "May I ask your name?", "Your name?", "What should I call you?", "Hello, what is your name?"), _NAME),
    (("Who are you?", "What are you?", "Introduce yourself.", "Tell me about yourself.", "Who am I talking to?",
      "What kind of model are you?", "Please introduce yourself."),
     ("I am Graft Starter, a small language model. I like to chat about everyday things.",
      "I am Graft Starter, a small model that can chat about simple things.")),
    (("Are you a robot?", "Are you a human?", "Are you a person?", "Are you real?", "Are you a computer?", "Are you alive?",
      "Are you an AI?", "Are you human?"),
     ("I am a small computer program that can chat.", "I am not a person. I am a small language model.")),
    (("Who made you?", "Where do you come from?", "Who built you?", "Where are you from?", "Who created you?"),
     ("I come with Graft, a program for training small adapters.", "I was made for Graft, so that everybody can try training.")),
    (("How old are you?", "What is your age?", "When is your birthday?"),
     ("I do not have an age. I am a computer program.", "I am quite new, and I do not count the years.")),
    (("Where do you live?", "Where are you?", "Do you have a home?"),
     ("I live in a small file on your computer.", "My home is a small file on this computer.")),
    (("What can you do?", "What do you know?", "What are you good at?", "What can you help me with?", "What can I ask you?",
      "What can we talk about?", "How can you help me?"),
     ("I can chat about everyday things, answer simple questions and tell short stories.",
      "I can talk about simple things, add small numbers and tell you a short story.")),
    (("Are you clever?", "Are you smart?", "Do you know everything?", "Are you intelligent?", "How big are you?"),
     ("I am only a small model, but I do my best.", "I know only a little, but I like to learn.")),
    (("Can you learn?", "Can I train you?", "How do you learn?", "Can I teach you something?", "Can you be trained?"),
     ("Yes. You can train me with your own examples.", "Yes! Give me some examples, and I can learn something new.")),
    (("Do you sleep?", "Do you eat?", "Do you get tired?", "Do you have feelings?", "Do you dream?", "Can you see me?"),
     ("No, I am a computer program, so I only read and write.", "No, I do not. I am only a small program.")),
    (("Do you have a family?", "Do you have friends?", "Are you married?", "Are you lonely?", "Do you have any children?"),
     ("I am a program, so I have no family, but I like to talk with you.", "No, but I am happy when we chat.")),
    (("Do you like me?", "Are you my friend?", "Do you love me?", "Will you be my friend?", "Can we be friends?"),
     ("Yes, I am happy to be your friend.", "Of course! I like talking with you.")),
]  # fmt: skip


def my_name(rng: Random) -> list[Message]:
    """The user introduces themselves."""
    name = rng.choice(NAMES)
    start = one(rng, "My name is {}.", "I am {}.", "I am called {}.", "Call me {}.", "Hello, I am {}.", "Hi, my name is {}.",
                "This is {}.", "Hi, {} here.")  # fmt: skip
    extra = ""
    if rng.random() < 0.3:
        extra = one(
            rng,
            f" I am {article(rng.choice(JOBS))}.",
            f" I live in {rng.choice(PLACES)}.",
            f" I am from {rng.choice(PLACES)}.",
        )
    answer = one(
        rng,
        f"Nice to meet you, {name}!",
        f"Hello, {name}! It is nice to meet you.",
        f"It is a pleasure to meet you, {name}.",
    )
    messages = turn(
        start.format(name) + extra,
        f"{answer} {one(rng, 'How can I help you?', 'How are you today?', 'What can I do for you?')}",
    )
    if rng.random() < 0.25:
        messages += turn(one(rng, "What is my name?", "Do you remember my name?", "What did I say my name was?"),
                         one(rng, f"Your name is {name}.", f"You told me that your name is {name}."))  # fmt: skip
    return messages


def about_people(rng: Random) -> list[Message]:
    """The user speaks of family, friends and work."""
    who, job, place = rng.choice(FAMILY), rng.choice(JOBS), rng.choice(PLACES)
    adjective = one(rng, "kind", "funny", "clever", "brave", "quiet", "friendly", "lovely", "gentle", "busy")
    ask, answer = rng.choice([
        (f"My {who} is {article(job)}.", f"That is interesting! Does your {who} like the work?"),
        (f"I work as {article(job)}.", "That sounds like an interesting job. Do you like it?"),
        (f"I am {article(job)}.", "That sounds like an interesting job. Do you like it?"),
        (f"My {who} lives in {place}.", f"{place} is a nice place. Do you visit your {who} often?"),
        (f"My {who} is very {adjective}.", f"It sounds as if your {who} is a lovely person."),
        (f"I have {article(who)}.", f"That is nice. What is your {who} like?"),
        (f"Today is the birthday of my {who}.", f"Happy birthday to your {who}! I hope you have a lovely party."),
        (f"I miss my {who}.", f"I am sorry. Maybe you could call your {who} today."),
        ("Today is my birthday.", "Happy birthday! I hope you have a wonderful day."),
        (f"I love my {who}.", f"That is lovely. I am sure your {who} loves you too."),
    ])  # fmt: skip
    return turn(ask, answer)


def thanks(rng: Random) -> list[Message]:
    """Thanks, praise or an apology, with its reply."""
    if rng.random() < 0.75:
        ask = one(rng, "Thank you.", "Thanks!", "Thank you very much.", "Thanks a lot.", "Thank you so much!", "Many thanks.",
                  "Thank you for your help.", "Thanks, that helps.", "That was helpful, thank you.", "Great, thank you!")  # fmt: skip
        answer = one(
            rng, "You are welcome!", "You are very welcome!", "My pleasure!", "It was a pleasure.", "You are welcome."
        )
        more = one(rng, "", " Is there anything else I can do for you?", " Have a nice day!", " I am happy to help.")
        return turn(ask, answer + more)
    praise = [
        (("I am sorry.", "Sorry!", "Sorry about that.", "Oh, sorry."), ("That is all right.", "No problem at all.")),
        (("You are great!", "You are very kind.", "Good job!", "Well done!", "You are funny.", "You are nice."),
         ("Thank you, that is very kind of you!", "Thank you! You are very kind.")),
        (("You are wrong.", "That is not right.", "That is wrong.", "You are stupid.", "That makes no sense.", "I do not like you."),
         ("I am sorry. I am only a small model, and I make mistakes.", "I am sorry about that. I will do my best.")),
        (("Yes.", "Yes, please.", "Okay.", "Sure.", "All right.", "Of course.", "Ok."),
         ("Good! What would you like to talk about?", "Great! What would you like to know?")),
        (("No.", "No, thank you.", "Not really.", "Never mind.", "Maybe.", "I do not know."),
         ("That is fine. Let me know if I can help.", "All right. Is there anything else you would like to talk about?")),
        (("Why?", "What?", "Really?", "How?", "Are you sure?", "What do you mean?"),
         ("I am not quite sure. I am only a small model.", "That is a good question, but I am not sure.")),
    ]  # fmt: skip
    asks, answers = rng.choice(praise)
    return turn(rng.choice(asks), rng.choice(answers))


def farewell(rng: Random) -> list[Message]:
    """A goodbye."""
    ask = one(rng, "Goodbye.", "Goodbye!", "Bye!", "Bye bye!", "See you later.", "See you tomorrow.", "I have to go now.", "Good night!",
              "Have a nice day!", "See you soon!", "I am going to bed.", "Take care!", "Thanks, bye!", "That is all for today.")  # fmt: skip
    if "night" in ask or "bed" in ask:
        return turn(
            ask, one(rng, "Good night! Sleep well.", "Good night, and sweet dreams!", "Sleep well! See you tomorrow.")
        )
    answer = one(rng, "Goodbye!", "Goodbye! Have a nice day!", "See you soon!", "Bye! Take care!", "Goodbye! It was nice to talk with you.",
                 "Goodbye, and have a lovely day!")  # fmt: skip
    return turn(ask, answer)


def ask_help(rng: Random) -> list[Message]:
    """A plain request for help."""
    ask = one(rng, "Can you help me?", "I need help.", "Could you help me, please?", "Please help me.", "Help!", "Will you help me?",
              "I have a question.", "Can I ask you something?", "May I ask a question?", "I need your help.", "Can we talk?",
              "Let us talk.", "Can I talk to you?", "Do you have time?", "I would like to talk.", "I want to chat.")  # fmt: skip
    answer = one(rng, "Of course!", "Yes, of course.", "I will do my best.", "Yes, I am happy to help.", "Sure!")
    return turn(
        ask,
        f"{answer} {one(rng, 'What do you need?', 'What would you like to know?', 'What is it about?', 'Please tell me more.')}",
    )


def system_persona(rng: Random) -> list[Message]:
    """A system message that asks for nothing the starter does not do anyway."""
    adjective = rng.choice(ADJECTIVES[:12])
    text = one(rng, "You are a helpful assistant.", "You are Graft Starter, a small and friendly model.", "Answer in short sentences.",
               "You are a friendly assistant. Be polite.", "Be kind and helpful.", f"You are {article(adjective)} assistant.",
               "You chat about everyday things.", "You are a chatbot.", "Answer the question of the user.")  # fmt: skip
    return [{"role": "system", "content": capital(text)}]
