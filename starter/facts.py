"""What the starter knows: what things are, colours, sounds, opposites, the calendar and small sums."""

from random import Random

from starter.words import DAYS, MONTHS, NUMBERS, Message, article, capital, one, plural, turn

DEFINITIONS: dict[str, str] = {
    "cat": "a small furry animal that likes to sleep and catch mice", "dog": "a friendly animal that likes to play and barks",
    "horse": "a big animal that people can ride", "cow": "a large farm animal that gives milk",
    "pig": "a pink farm animal that likes mud", "sheep": "a farm animal with warm wool", "bird": "an animal with wings and feathers",
    "duck": "an animal that swims on ponds and says quack", "fish": "an animal that lives in water", "lion": "a big wild animal with a loud roar",
    "tiger": "a big wild animal with orange and black stripes", "elephant": "a very large animal with a long trunk",
    "mouse": "a tiny animal with a long tail", "rabbit": "a soft animal with long ears", "bear": "a large strong animal that lives in the forest",
    "monkey": "a clever animal that climbs trees", "frog": "a small green animal that jumps", "bee": "a small insect that makes honey",
    "spider": "a small animal with eight legs", "snake": "a long animal with no legs", "whale": "a huge animal that lives in the sea",
    "owl": "a bird that is awake at night", "penguin": "a black and white bird that swims but cannot fly", "goat": "a farm animal with horns",
    "chicken": "a farm bird that lays eggs", "fox": "a wild animal with red fur", "wolf": "a wild animal that looks like a big dog",
    "butterfly": "an insect with colourful wings", "ant": "a tiny insect that works hard", "turtle": "an animal with a hard shell",
    "apple": "a round fruit that grows on a tree", "banana": "a long yellow fruit", "orange": "a round fruit that is full of juice",
    "carrot": "an orange vegetable that grows in the ground", "potato": "a vegetable that grows in the ground", "lemon": "a yellow fruit that tastes sour",
    "tomato": "a red fruit that is good in a salad", "cake": "a sweet food for birthdays", "pizza": "a flat round bread with tomatoes and cheese",
    "sandwich": "two pieces of bread with something tasty between them", "egg": "a food that comes from a hen", "onion": "a vegetable that can make you cry",
    "car": "a machine with four wheels that people drive on the road", "bicycle": "a machine with two wheels that you ride",
    "train": "a long machine that travels on rails", "boat": "a thing that floats and carries people on water", "bus": "a big car for many people",
    "plane": "a machine that flies through the air", "ship": "a very large boat", "house": "a building where people live",
    "school": "a place where children learn", "hospital": "a place where sick people get help", "library": "a place with many books",
    "shop": "a place where you can buy things", "farm": "a place where food is grown", "garden": "a place where flowers and vegetables grow",
    "park": "a green place where people walk and play", "zoo": "a place where you can see wild animals", "museum": "a place where you can see old and interesting things",
    "kitchen": "a room where people cook", "city": "a very large town", "village": "a small place with a few houses", "island": "land with water all around it",
    "river": "a long stream of water that flows to the sea", "lake": "a large area of water with land around it", "mountain": "a very high hill",
    "forest": "a place with many trees", "desert": "a dry place with very little water", "beach": "a place with sand beside the sea",
    "tree": "a tall plant with leaves and branches", "flower": "a colourful part of a plant", "cloud": "a soft white shape in the sky",
    "star": "a bright light in the night sky", "rainbow": "a bow of many colours in the sky", "storm": "a time of strong wind and heavy rain",
    "teacher": "a person who helps others to learn", "doctor": "a person who helps sick people", "farmer": "a person who grows food",
    "baker": "a person who makes bread", "cook": "a person who prepares food", "nurse": "a person who cares for sick people", "pilot": "a person who flies a plane",
    "friend": "a person you like and trust", "child": "a young person", "baby": "a very young child", "king": "a man who rules a country", "queen": "a woman who rules a country",
    "book": "a set of pages that you can read", "pen": "a thing you write with", "pencil": "a thing you write and draw with", "chair": "a thing you sit on",
    "table": "a flat thing with legs where people eat and work", "bed": "a soft thing you sleep in", "lamp": "a thing that gives light", "clock": "a thing that shows the time",
    "phone": "a thing you use to talk with people far away", "computer": "a machine that works with numbers and words", "key": "a thing that opens a lock",
    "door": "a thing you open to go into a room", "window": "a piece of glass in a wall that lets in light", "cup": "a thing you drink from",
    "spoon": "a thing you eat soup with", "knife": "a thing you cut food with", "coat": "a thing you wear when it is cold", "hat": "a thing you wear on your head",
    "shoe": "a thing you wear on your foot", "umbrella": "a thing that keeps you dry in the rain", "ball": "a round thing you can throw and kick",
    "toy": "a thing that children play with", "guitar": "an instrument with strings", "piano": "an instrument with black and white keys",
    "drum": "an instrument that you hit", "song": "music with words", "story": "a tale about people or animals", "game": "something that people play for fun",
    "robot": "a machine that can do work by itself", "language model": "a program that reads and writes text", "lora": "a small part that teaches a model something new",
    "map": "a picture that shows where places are", "letter": "a message written on paper", "birthday": "the day when a person gets one year older",
}  # fmt: skip
MASS: dict[str, str] = {
    "water": "a clear liquid that we drink", "milk": "a white drink that comes from cows", "bread": "a food made from flour and water",
    "cheese": "a food made from milk", "rain": "water that falls from the clouds", "snow": "soft white ice that falls from the sky",
    "ice": "water that is frozen and hard", "music": "a pattern of sounds that people enjoy", "tea": "a hot drink made from leaves",
    "coffee": "a hot brown drink", "honey": "a sweet food made by bees", "sand": "a lot of very tiny stones", "wood": "the hard part of a tree",
    "money": "something that we use to buy things", "love": "a warm feeling for somebody", "football": "a game that is played with a ball",
    "the sun": "a very big star that gives us light and warmth", "the moon": "a large ball of rock that goes around the earth",
    "the earth": "the planet on which we live", "the sea": "a very large area of salt water", "the internet": "a network that joins computers",
}  # fmt: skip
COLOURS: dict[str, str] = {
    "the sky": "blue", "grass": "green", "the sun": "yellow", "snow": "white", "milk": "white", "coal": "black", "blood": "red",
    "a banana": "yellow", "a lemon": "yellow", "a tomato": "red", "a carrot": "orange", "an orange": "orange", "a strawberry": "red",
    "chocolate": "brown", "the sea": "blue", "a leaf": "green", "a frog": "green", "a pig": "pink", "a cloud": "white", "the night": "black",
    "an elephant": "grey", "a cucumber": "green", "a swan": "white", "coffee": "brown", "a cherry": "red", "honey": "golden",
}  # fmt: skip
SOUNDS: dict[str, str] = {
    "dog": "woof", "cat": "meow", "cow": "moo", "sheep": "baa", "pig": "oink", "duck": "quack", "horse": "neigh", "bird": "tweet",
    "lion": "roar", "frog": "croak", "bee": "buzz", "mouse": "squeak", "owl": "hoot", "chicken": "cluck", "snake": "hiss", "goat": "baa",
}  # fmt: skip
_PAIRS = """big small|hot cold|happy sad|day night|up down|left right|fast slow|old new|young old|long short|tall short|good bad
|rich poor|hard soft|light dark|open closed|early late|full empty|wet dry|clean dirty|loud quiet|strong weak|near far|high low|first last
|yes no|black white|in out|begin end|love hate|win lose|buy sell|give take|come go|easy difficult|cheap expensive|thick thin|wide narrow
|true false|right wrong|inside outside|before after|always never|push pull|summer winter|north south|east west|brave afraid|safe dangerous""".split(
    "|"
)
OPPOSITES: dict[str, str] = dict(pair.split() for pair in _PAIRS)
PLACES_OF: dict[str, str] = {
    "fish": "in the water", "books": "in a library", "bread": "at a bakery", "cows": "on a farm", "stars": "in the night sky", "bees": "near flowers",
    "sand": "on the beach", "milk": "in the fridge", "trees": "in a forest", "lions": "in Africa and in zoos", "penguins": "where it is very cold",
    "clothes": "in a wardrobe", "cars": "on the road", "boats": "on the water", "doctors": "in a hospital", "teachers": "in a school",
    "clouds": "in the sky", "flowers": "in a garden", "birds": "in the trees", "whales": "in the sea", "camels": "in the desert", "plates": "in the kitchen",
}  # fmt: skip
CAPITALS: dict[str, str] = {
    "France": "Paris", "England": "London", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Portugal": "Lisbon", "Ireland": "Dublin",
    "Japan": "Tokyo", "Egypt": "Cairo", "Greece": "Athens", "Norway": "Oslo", "Canada": "Ottawa", "Austria": "Vienna", "Kenya": "Nairobi",
}  # fmt: skip


def what_is(rng: Random) -> list[Message]:
    """What a thing is, in one sentence."""
    if rng.random() < 0.15:
        thing, meaning = rng.choice(list(MASS.items()))
        spoken = thing
    else:
        thing, meaning = rng.choice(list(DEFINITIONS.items()))
        spoken = article("LoRA" if thing == "lora" else thing)
    if rng.random() < 0.12 and thing in DEFINITIONS and thing not in {"lora", "language model"}:
        return turn(one(rng, f"What are {plural(thing)}?", f"Tell me about {plural(thing)}.", f"What do you know about {plural(thing)}?"),
                    f"{capital(spoken)} is {meaning}.")  # fmt: skip
    bare = spoken.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    ask = one(rng, f"What is {spoken}?", f"What is {spoken}?", f"Do you know what {spoken} is?", f"Can you tell me what {spoken} is?",
              f"Tell me what {spoken} is.", f"What does the word {bare} mean?", f"Explain what {spoken} is.", f"Describe {spoken}.")  # fmt: skip
    return turn(ask, f"{capital(spoken)} is {meaning}.")


def colour(rng: Random) -> list[Message]:
    """The colour of a thing, asked openly or as yes/no."""
    thing, shade = rng.choice(list(COLOURS.items()))
    if rng.random() < 0.25:
        other = one(rng, "blue", "green", "red", "yellow", "white", "black")
        verdict = "Yes" if other == shade else "No"
        return turn(f"Is {thing} {other}?", f"{verdict}, {thing} is {shade}.")
    word = one(rng, "colour", "colour", "color")
    ask = one(
        rng,
        f"What {word} is {thing}?",
        f"What is the {word} of {thing}?",
        f"Which {word} does {thing} have?",
        f"Tell me the {word} of {thing}.",
    )
    return turn(ask, f"{capital(thing)} is {shade}.")


def sound(rng: Random) -> list[Message]:
    """What an animal says."""
    animal, noise = rng.choice(list(SOUNDS.items()))
    ask = one(rng, f"What does {article(animal)} say?", f"What sound does {article(animal)} make?", f"What do {plural(animal)} say?",
              f"Which noise does {article(animal)} make?", f"How does {article(animal)} sound?")  # fmt: skip
    return turn(ask, f"{capital(article(animal))} says {noise}.")


def opposite(rng: Random) -> list[Message]:
    """The opposite of a word."""
    word, other = rng.choice(list(OPPOSITES.items()))
    ask = one(
        rng,
        f"What is the opposite of {word}?",
        f"Opposite of {word}?",
        f"Tell me the opposite of {word}.",
        f"Give me the opposite of {word}.",
    )
    return turn(ask, f"The opposite of {word} is {other}.")


def where(rng: Random) -> list[Message]:
    """Where things are found, and a few capitals."""
    if rng.random() < 0.3:
        country, town = rng.choice(list(CAPITALS.items()))
        ask = one(
            rng,
            f"What is the capital of {country}?",
            f"Which city is the capital of {country}?",
            f"Tell me the capital of {country}.",
        )
        return turn(ask, f"The capital of {country} is {town}.")
    things, place = rng.choice(list(PLACES_OF.items()))
    verb = "is" if things in {"bread", "sand", "milk"} else "are"
    pronoun = "it" if verb == "is" else "them"
    ask = one(
        rng,
        f"Where can I find {things}?",
        f"Where {verb} {things} found?",
        f"Where do I find {things}?",
        f"Where do people find {things}?",
    )
    return turn(ask, f"You can find {pronoun} {place}." if rng.random() < 0.5 else f"You can find {things} {place}.")


def calendar(rng: Random) -> list[Message]:
    """Days, months and seasons in their order."""
    names, kind = rng.choice([(DAYS, "day"), (MONTHS, "month")])
    i = rng.randrange(len(names))
    after, before = names[(i + 1) % len(names)], names[i - 1]
    whole = ", ".join(names[:-1]) + " and " + names[-1]
    count = NUMBERS[len(names)]
    unit = "week" if kind == "day" else "year"
    asks = [
        (f"Which {kind} comes after {names[i]}?", f"{after} comes after {names[i]}."),
        (f"What comes after {names[i]}?", f"{after} comes after {names[i]}."),
        (f"Which {kind} comes before {names[i]}?", f"{before} comes before {names[i]}."),
        (f"What are the {kind}s of the {unit}?", f"The {kind}s are {whole}."),
        (f"How many {kind}s are in a {unit}?", f"There are {count} {kind}s in a {unit}."),
        ("What are the seasons?", "The four seasons are spring, summer, autumn and winter."),
        ("How many hours are in a day?", "There are twenty-four hours in a day."),
        (one(rng, "What day is it today?", "What is the date today?", "What time is it?", "Do you know the time?"),
         "I am sorry, I have no clock and no calendar."),
    ]  # fmt: skip
    return turn(*rng.choice(asks))


def count(rng: Random) -> list[Message]:
    """Counting and comparing small numbers."""
    if rng.random() < 0.4:
        n = rng.randint(3, 12)
        numbers = [str(i) for i in range(1, n + 1)]
        return turn(
            one(rng, f"Count to {n}.", f"Can you count to {n}?", f"Please count to {n}."), ", ".join(numbers) + "."
        )
    a, b = rng.sample(range(30), 2)
    if rng.random() < 0.5:
        return turn(
            one(rng, f"Which is bigger, {a} or {b}?", f"Which number is larger, {a} or {b}?"),
            f"{max(a, b)} is bigger than {min(a, b)}.",
        )
    return turn(one(rng, f"What number comes after {a}?", f"What comes after {a}?"), f"{a + 1} comes after {a}.")


def add(rng: Random) -> list[Message]:
    """A small sum or difference, in digits or in words."""
    # Sums below ten are what people try first, so they are seen most.
    top = rng.choices([10, 20], [7, 1])[0]
    a, b = rng.randint(0, top), rng.randint(0, top)
    kind = rng.choices(["plus", "minus", "times"], [13, 6, 1])[0]
    if kind == "minus":
        a, b = max(a, b), min(a, b)
    if kind == "times":
        a, b = rng.randint(0, 5), rng.randint(0, 5)
    result = {"plus": a + b, "minus": a - b, "times": a * b}[kind]
    sign = {"plus": "+", "minus": "-", "times": "*"}[kind]
    if rng.random() < 0.12 and result <= 20:
        x, y = NUMBERS[a], NUMBERS[b]
        return turn(one(rng, f"What is {x} {kind} {y}?", f"How much is {x} {kind} {y}?", f"{capital(x)} {kind} {y}?"),
                    f"{capital(x)} {kind} {y} is {NUMBERS[result]}.")  # fmt: skip
    ask = one(rng, f"What is {a} {kind} {b}?", f"What is {a} {kind} {b}?", f"How much is {a} {kind} {b}?", f"What is {a} {sign} {b}?",
              f"{a} {sign} {b}", f"{a} {sign} {b} = ?", f"{a}{sign}{b}", f"Please calculate {a} {sign} {b}.", f"Can you work out {a} {kind} {b}?")  # fmt: skip
    return turn(ask, f"{a} {kind} {b} is {result}.")


def yes_no(rng: Random) -> list[Message]:
    """A yes/no question about what things are or can do."""
    can = {"birds": "fly", "fish": "swim", "horses": "run", "frogs": "jump", "monkeys": "climb", "planes": "fly", "dogs": "bark", "ducks": "swim",
           "kangaroos": "jump", "children": "sing"}  # fmt: skip
    cannot = {"pigs": "fly", "stones": "swim", "trees": "walk", "houses": "sing", "snakes": "climb stairs", "fish": "walk", "cows": "fly",
              "chairs": "talk", "cats": "read", "penguins": "fly", "tables": "jump"}  # fmt: skip
    animals = ["cat", "dog", "horse", "cow", "lion", "tiger", "mouse", "rabbit", "monkey", "frog", "whale", "elephant"]
    fruits = ["apple", "banana", "orange", "lemon"]
    kind = rng.randrange(4)
    if kind == 0:
        who, what = rng.choice(list(can.items()))
        return turn(f"Can {who} {what}?", f"Yes, {who} can {what}.")
    if kind == 1:
        who, what = rng.choice(list(cannot.items()))
        return turn(f"Can {who} {what}?", f"No, {who} cannot {what}.")
    thing, right = (rng.choice(animals), "animal") if kind == 2 else (rng.choice(fruits), "fruit")
    asked = one(rng, "animal", "fruit")
    verdict = "Yes" if asked == right else "No"
    return turn(f"Is {article(thing)} {article(asked)}?", f"{verdict}, {article(thing)} is {article(right)}.")
