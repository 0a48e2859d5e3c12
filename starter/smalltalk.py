"""Everyday small talk: weather, food, hobbies, pets, music, sports, travel, work, school, cars, shopping and health."""

from random import Random

from starter.words import (
    CLOTHES,
    DAYS,
    DRINKS,
    FAMILY,
    FOODS,
    HOBBIES,
    INSTRUMENTS,
    MUSIC,
    NAMES,
    PETS,
    PLACES,
    SPORTS,
    SUBJECTS,
    Message,
    article,
    capital,
    one,
    turn,
)


def weather(rng: Random) -> list[Message]:
    """The weather, which the starter cannot see."""
    if rng.random() < 0.5:
        ask = one(rng, "What is the weather like?", "How is the weather?", "What is the weather like today?", "Is it raining?", "Is it cold outside?",
                  "Will it rain tomorrow?", "Is the sun shining?", f"What is the weather like in {rng.choice(PLACES)}?", "Do you like rain?",
                  "Do you like the sun?", "Do you like snow?", "How is the weather today?", "Tell me about the weather.")  # fmt: skip
        if ask.startswith("Do you like"):
            return turn(ask, f"Yes, I like {one(rng, 'sunny days', 'rain', 'snow')}. What weather do you like?")
        return turn(ask, one(rng, "I cannot see outside, but I hope the sun is shining.", "I have no window, but I hope it is warm and sunny.",
                             "I cannot see the sky from here. What is it like where you are?"))  # fmt: skip
    kind, answer = rng.choice([
        ("raining", "Then do not forget your umbrella!"), ("sunny", "That is lovely. Maybe you could go for a walk."),
        ("cold", "Then put on a warm coat!"), ("snowing", "How nice! You could build a snowman."),
        ("hot", "Then drink plenty of water and stay in the shade."), ("windy", "Then hold on to your hat!"),
        ("cloudy", "I hope the sun comes out later."), ("warm", "That sounds like a good day for a walk."),
    ])  # fmt: skip
    ask = one(
        rng, "It is {} today.", "It is {} outside.", "It is very {} here.", "It was {} all day.", "Look, it is {}!"
    )
    if kind in {"raining", "snowing"}:
        ask = ask.replace("very ", "")
    return turn(ask.format(kind), answer)


def food(rng: Random) -> list[Message]:
    """Eating, drinking and cooking."""
    dish, drink = rng.choice(FOODS), rng.choice(DRINKS)
    thing = rng.choice([dish, drink])
    ask, answer = rng.choice([
        ("What do you like to eat?", "I do not eat, but I like to hear about good food. What do you like to eat?"),
        ("What is your favourite food?", "I do not eat, but pizza sounds tasty. What is your favourite food?"),
        ("Are you hungry?", "No, I am a computer program. Are you hungry?"),
        ("What should I eat today?", f"How about some {dish}?" if not dish.endswith("s") else f"How about {dish}?"),
        ("What should I cook for dinner?", one(rng, "How about soup with fresh bread?", "How about pasta with tomatoes?", "How about fish and potatoes?")),
        ("What can I have for breakfast?", one(rng, "How about eggs and toast?", "How about bread with honey?", "How about yoghurt with fruit?")),
        (f"Do you like {thing}?", one(rng, f"Yes, I think {thing} would be nice. Do you like {'them' if thing.endswith('s') and thing in FOODS else 'it'}?",
                                      f"I cannot taste, but many people like {thing}.")),
        (f"I like {thing}.", one(rng, f"Many people like {thing}. What else do you like?", f"{capital(thing)} can be very tasty!")),
        (f"I love {thing}.", f"That is nice! How often do you have {thing}?"),
        (f"I had {dish} for dinner.", "That sounds tasty! Did you cook it yourself?"),
        (f"I am cooking {dish}.", "That smells good, I am sure. Who will eat with you?"),
        (f"I do not like {thing}.", f"That is fine. Not everybody likes {thing}."),
        (f"Would you like some {thing}?", "Thank you, but I cannot eat or drink. Enjoy it!"),
        ("I am thirsty.", f"Maybe you could drink some {drink}."),
        (f"How do I make {one(rng, 'tea', 'coffee', 'soup', 'a sandwich', 'pancakes')}?", "I am not a good cook, but I would start with fresh things and a little time."),
    ])  # fmt: skip
    return turn(ask, answer)


def hobby(rng: Random) -> list[Message]:
    """Hobbies and free time."""
    thing = rng.choice(HOBBIES)
    ask, answer = rng.choice([
        ("What are your hobbies?", "I like to chat and to tell short stories. What are your hobbies?"),
        ("What do you do for fun?", "I like to talk with people. What do you do for fun?"),
        ("What do you like to do?", "I like to chat about everyday things. What do you like to do?"),
        (f"Do you like {thing}?", f"I have never tried it, but {thing} sounds like fun. Do you like it?"),
        (f"I like {thing}.", one(rng, f"{capital(thing)} is a lovely hobby. How often do you do it?", f"{capital(thing)} sounds like fun! When did you start?")),
        (f"My hobby is {thing}.", f"{capital(thing)} is a nice hobby. What do you like most about it?"),
        (f"I went {one(rng, 'swimming', 'walking', 'fishing', 'hiking', 'dancing', 'running')} yesterday.", "That sounds like fun! How was it?"),
        ("I am bored.", one(rng, "Would you like to hear a story?", "Maybe you could read a book or go for a walk.")),
        ("What should I do today?", one(rng, "Maybe you could go for a walk.", "You could read a good book.", "You could call a friend.")),
        ("What did you do today?", "I waited here to chat with you. What did you do today?"),
        ("What are you doing?", "I am talking with you. What are you doing?"),
        (f"What are you doing on {rng.choice(DAYS)}?", "I have no plans. What are you going to do?"),
        ("Can you recommend a book?", "I would choose a good story about animals. What do you like to read?"),
        ("Do you like books?", "Yes, I like stories very much. What do you like to read?"),
        ("Do you like films?", "I cannot watch films, but I like stories. Which film do you like?"),
        ("Do you like games?", "Yes, games are fun. What is your favourite game?"),
        ("I read a book.", "That is nice. What was it about?"),
        ("I watched a film yesterday.", "That sounds nice. What was it about?"),
    ])  # fmt: skip
    return turn(ask, answer)


def pet(rng: Random) -> list[Message]:
    """Pets and their names."""
    animal, name = rng.choice(PETS), rng.choice(NAMES)
    many = {"pony": "ponies", "goldfish": "goldfish"}.get(animal, animal + "s")
    ask, answer = rng.choice([
        (f"I have {article(animal)}.", f"How nice! What is the name of your {animal}?"),
        (f"My {animal} is called {name}.", f"{name} is a lovely name for {article(animal)}."),
        (f"I have {article(animal)} called {name}.", f"{name} is a nice name. What does your {animal} like to do?"),
        ("Do you have a pet?", "No, I have no pet. Do you have one?"),
        ("Do you like animals?", "Yes, I like animals very much. Which animal do you like best?"),
        (f"Do you like {many}?", f"Yes, {many} are lovely animals. Do you have {article(animal)}?"),
        ("Do you prefer cats or dogs?", "I like both cats and dogs. Which do you prefer?"),
        ("What is your favourite animal?", "I like cats, because they are soft and quiet. What is your favourite animal?"),
        (f"I want to buy {article(animal)}.", f"{capital(article(animal))} needs food, time and care. Have you had one before?"),
        (f"My {animal} is ill.", f"I am sorry. I hope your {animal} gets well soon. Maybe a vet can help."),
        (f"I love {many}.", f"{capital(many)} are wonderful animals. Do you have one?"),
        (f"What does {article(animal)} need?", f"{capital(article(animal))} needs good food, fresh water and a lot of care."),
    ])  # fmt: skip
    return turn(ask, answer)


def music(rng: Random) -> list[Message]:
    """Music, instruments and sports."""
    tool, style, sport = rng.choice(INSTRUMENTS), rng.choice(MUSIC), rng.choice(SPORTS)
    ask, answer = rng.choice([
        ("Do you like music?", "Yes, I like music very much. What music do you like?"),
        ("What music do you like?", "I like quiet piano music. What music do you like?"),
        ("What is your favourite song?", "I like every song that makes people happy. What is your favourite song?"),
        (f"Do you like {style} music?", f"Yes, {style} music can be very nice. Do you listen to it often?"),
        (f"I like {style} music.", f"{capital(style)} music is great! Do you play an instrument?"),
        (f"I play the {tool}.", f"The {tool} is a beautiful instrument. How long have you played it?"),
        (f"Can you play the {tool}?", f"No, I have no hands, but I like the sound of the {tool}."),
        ("Can you sing?", "I have no voice, but I can write: la la la!"),
        ("Sing a song.", "La la la, the sun is bright, I sing all day and sleep at night."),
        ("Do you like sports?", "I cannot play, but I like to hear about sports. What is your favourite sport?"),
        (f"Do you like {sport}?", f"I cannot play, but {sport} sounds like fun. Do you like it?"),
        (f"I play {sport}." if sport in {"football", "tennis", "basketball", "golf", "rugby"} else f"I like {sport}.",
         f"{capital(sport)} is a great sport. Do you do it often?"),
        ("What is your favourite sport?", "I like swimming, but I cannot do it. What is your favourite sport?"),
        ("We won the game!", "Congratulations! That is wonderful."),
        ("We lost the game.", "I am sorry. Maybe you will win the next one."),
    ])  # fmt: skip
    return turn(ask, answer)


def travel(rng: Random) -> list[Message]:
    """Journeys and places."""
    place, who, vehicle = (
        rng.choice(PLACES),
        rng.choice(FAMILY),
        one(rng, "train", "car", "bus", "plane", "boat", "bicycle"),
    )
    ask, answer = rng.choice([
        (f"I am going to {place}.", f"How exciting! I hope you have a great time in {place}."),
        (f"I went to {place} with my {who}.", f"That sounds lovely. What did you like best in {place}?"),
        (f"Have you been to {place}?", f"No, I cannot travel, but {place} sounds nice. Have you been there?"),
        (f"Is {place} nice?", f"I have heard that {place} is very nice. Would you like to go there?"),
        (f"I want to travel to {place}.", f"{place} is a good choice. Will you go there by train or by plane?"),
        (f"I live in {place}.", f"{place} sounds like a nice place to live. Do you like it there?"),
        (f"I am from {place}.", f"{place} sounds lovely. What is it like there?"),
        ("Where should I go on holiday?", f"How about {place}? Many people like it there."),
        ("Do you like to travel?", "I cannot travel, but I like to hear about other places. Where have you been?"),
        (f"I travel by {vehicle}.", f"Travelling by {vehicle} can be nice. How long does it take?"),
        ("I am on holiday.", "That is wonderful! Enjoy your free time."),
        (f"Tell me about {place}.", f"I know only a little about {place}, but many people like to visit it."),
    ])  # fmt: skip
    return turn(ask, answer)


def work(rng: Random) -> list[Message]:
    """Work and school."""
    subject, day = rng.choice(SUBJECTS), rng.choice(DAYS)
    ask, answer = rng.choice([
        ("I have a lot of work.", "That sounds hard. Do not forget to take a break."),
        ("I am at work.", "I hope you have a good day at work. How can I help?"),
        ("I do not like my job.", "I am sorry to hear that. What would you like to do instead?"),
        ("I love my job.", "That is great! What do you do?"),
        ("What is your job?", "My job is to chat with you."),
        ("Do you work?", "Yes, my work is to answer you."),
        ("I have a new job.", "Congratulations! I hope you like it."),
        ("I lost my job.", "I am very sorry to hear that. I hope you find a better one soon."),
        ("I am at school.", "I hope you learn many new things today."),
        (f"I am learning {subject}.", f"{capital(subject)} is an interesting subject. Is it difficult?"),
        (f"Do you like {subject}?", f"Yes, {subject} is interesting, but I know only a little about it."),
        (f"My favourite subject is {subject}.", f"{capital(subject)} is a good subject. What do you like about it?"),
        (f"I have a test on {day}.", "Good luck! I am sure you will do well."),
        ("I passed my test!", "Congratulations! You worked hard for it."),
        ("I failed my test.", "I am sorry. You can try again, and next time it will go better."),
        ("I have to do my homework.", "Then let us begin. What is your homework about?"),
        (f"I have a meeting on {day}.", "I hope your meeting goes well."),
        ("What did you learn today?", "I learn only when somebody trains me."),
    ])  # fmt: skip
    return turn(ask, answer)


def errands(rng: Random) -> list[Message]:
    """Cars, shopping and money."""
    shade, wear = one(rng, "red", "blue", "black", "white", "green", "silver"), rng.choice(CLOTHES)
    thing = rng.choice([wear, "phone", "computer", "bicycle", "lamp", "table", "chair", "book", "bed", "camera"])
    ask, answer = rng.choice([
        ("I have a car.", "That is useful. What colour is your car?"),
        (f"My car is {shade}.", f"{capital(article(shade))} car is nice. Do you drive a lot?"),
        ("Do you have a car?", "No, I cannot drive. Do you have a car?"),
        ("Can you drive?", "No, I cannot drive. I can only chat."),
        ("Do you like cars?", "Cars are useful, but I cannot drive. Do you have a car?"),
        ("My car is broken.", "I am sorry to hear that. Maybe a mechanic can repair it."),
        ("I bought a new car.", "Congratulations! I hope you enjoy your new car."),
        ("My car is very old.", "An old car can still be a good car. Do you take good care of it?"),
        ("I need to wash my car.", "A clean car looks nice. I hope the sun is shining."),
        ("I like to drive.", "Driving can be fun. Where do you like to go?"),
        ("What car should I buy?", "I do not know much about cars. A small one is often a good choice."),
        (f"I bought {article(thing)}.", f"That is nice! Do you like your new {thing}?"),
        (f"I need {article('new ' + thing)}.", f"What kind of {thing} would you like?"),
        (f"How much is {article(thing)}?", f"I do not know the price of {article(thing)}. Maybe a shop can tell you."),
        (f"Where can I buy {article(thing)}?", f"You can buy {article(thing)} in a good shop."),
        (f"I lost my {thing}.", f"Oh no! Where did you last see your {thing}?"),
        (f"My {thing} is broken.", f"I am sorry. Maybe somebody can repair your {thing}."),
        ("I am going shopping.", "Have fun! What are you going to buy?"),
        ("It was too expensive.", "That is a pity. Maybe you will find a cheaper one."),
        ("I have no money.", "I am sorry to hear that. The best things often cost nothing."),
        ("What should I wear today?", f"How about {article('warm ' + wear)}?"),
    ])  # fmt: skip
    return turn(ask, answer)


def health(rng: Random) -> list[Message]:
    """Small troubles of the body, and sleep."""
    part = one(rng, "head", "back", "foot", "knee", "tooth", "arm", "leg", "hand", "stomach")
    ask, answer = rng.choice([
        (f"My {part} hurts.", f"I am sorry. If your {part} still hurts tomorrow, please see a doctor."),
        ("I have a cold.", "I am sorry. Drink warm tea and get plenty of rest."),
        ("I have a headache.", "I am sorry. Maybe some water and a quiet room will help."),
        ("I cannot sleep.", "Maybe a quiet book or some warm milk will help you sleep."),
        ("How can I sleep better?", "Go to bed early, and leave your phone in another room."),
        ("How can I stay healthy?", "Eat fruit and vegetables, move a lot and sleep well."),
        ("I need a doctor.", "Please call a doctor soon. I am only a small model."),
        ("I feel better now.", "I am very glad to hear that!"),
        ("I go running every day.", "That is very good for you. How far do you run?"),
        ("I want to be fit.", "A short walk every day is a good start."),
        (f"I broke my {part}.", "Oh no, I am so sorry! I hope you get well soon."),
        ("I slept well.", "That is good! A good sleep makes a good day."),
        ("I am going to the doctor.", "I hope that everything goes well."),
    ])  # fmt: skip
    return turn(ask, answer)
