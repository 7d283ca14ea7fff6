"""Mathematics and chat prompts from templates written for this project."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ("Ana", "Ben", "Chen", "Dana", "Emeka", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kofi",
          "Lena", "Mira", "Noor", "Omar", "Petra", "Quinn", "Rosa", "Sven", "Tara")
_THINGS = ("apples", "books", "tickets", "stamps", "marbles", "pencils", "cookies", "bricks",
           "postcards", "batteries", "oranges", "notebooks", "candles", "seeds", "coins")

# {n}: a name, {m}: another, {t}: things, {a} … {d}: numbers.
_MATH = (
    "{n} has {a} {t} and buys {b} more. Then {n} gives {c} of them to {m}. How many {t} does {n} "
    "have left?",
    "A train travels {a} km in {b} hours. At the same speed, how far does it travel in {c} hours?",
    "The price of a jacket is {a} dollars. It is reduced by {b} percent and then by another {c} "
    "percent. What is the final price?",
    "Solve for x: {b}x + {c} = {a}",
    "Solve the equation x^2 - {b}x + {c} = 0. Explain every step.",
    "What is the greatest common divisor of {a} and {b}?",
    "Find the least common multiple of {b} and {c}.",
    "A rectangle is {b} cm long and {c} cm wide. What are its area and its perimeter?",
    "{n} is {b} years older than {m}. Together they are {a} years old. How old is each of them?",
    "Compute {a} * {b} - {c} step by step.",
    "What is {a} divided by {b}? Give the quotient and the remainder.",
    "A tank holds {a} litres. One pipe fills {b} litres per minute and another drains {c} litres "
    "per minute. How long does it take to fill the empty tank?",
    "The sum of three consecutive integers is {a}. What are they?",
    "A bag holds {b} red and {c} blue balls. Two balls are drawn without putting them back. What "
    "is the probability that both are red?",
    "How many ways are there to choose {d} {t} out of {c}?",
    "Find the derivative of f(x) = {b}x^{d} - {c}x + {a}.",
    "Compute the integral of {b}x^2 + {c} from 0 to {d}.",
    "A circle has a radius of {b} cm. Find its circumference and area.",
    "{n} reads {b} pages on the first day and {c} more pages on every following day. How many "
    "pages has {n} read after {d} days?",
    "Find the sum of the first {b} terms of the arithmetic sequence that starts at {c} with a "
    "difference of {d}.",
    "{n} invests {a} dollars at {d} percent interest per year, compounded yearly. How much is it "
    "worth after {c} years?",
    "Convert the fraction {c}/{b} to a decimal number and to a percentage.",
    "Find the slope and the intercept of the line through the points ({b}, {c}) and ({a}, {d}).",
    "The numbers are {a}, {b}, {c} and {d}. What are their mean and their median?",
    "If {b} workers build a wall in {c} days, how many days do {d} workers need?",
    "A recipe for {c} people needs {a} grams of flour. How much is needed for {b} people?",
    "Write {a} as a product of prime numbers.",
    "The two shorter sides of a right triangle are {b} and {c}. How long is the longest side?",
    "What is {b} modulo {d}? And what is {a} modulo {d}?",
    "{n} runs {b} km in {a} minutes. What is the average speed in km per hour?",
    "Simplify the expression ({b}x + {c})({d}x - {b}).",
    "How many {t} are in {b} boxes with {c} {t} each, if {d} of the boxes are empty?",
)

_TOPICS = (
    "the water cycle", "photosynthesis", "the French Revolution", "compound interest", "volcanoes",
    "the Roman aqueducts", "machine learning", "recycling at home", "the history of tea",
    "bicycle maintenance", "public libraries", "black holes", "sourdough bread",
    "the printing press",
    "electric cars", "learning a second language", "the immune system", "urban gardening",
    "chess openings", "the Silk Road", "remote work", "solar panels", "migrating birds",
    "inflation",
    "the Great Barrier Reef", "time management", "renewable energy", "the human heart",
    "jazz music",
    "the Moon landing", "coffee brewing", "earthquakes", "databases", "the invention of writing",
    "healthy sleep", "public speaking", "glaciers", "ancient Egypt", "computer networks",
    "honey bees",
    "hiking in the mountains", "the stock market", "folk tales", "water purification", "robotics",
    "the theory of evolution", "opera", "road safety", "cloud computing", "family traditions",
)
_CHAT = (
    "Explain {x} to a ten-year-old.",
    "Write a short essay about {x}.",
    "What are the three most important things to know about {x}?",
    "Give me five tips related to {x}.",
    "Write an email to a colleague proposing a talk about {x}.",
    "Compare {x} with {y}.",
    "Write a dialogue between two friends who disagree about {x}.",
    "Summarise the main ideas behind {x} in one paragraph.",
    "I am new to {x}. Where should I start?",
    "Write a poem about {x}.",
    "What are common misconceptions about {x}?",
    "Write the introduction of a blog post about {x} for beginners.",
    "Tell a short story in which {x} plays a role.",
    "List advantages and disadvantages of {x}.",
    "Imagine you are an expert on {x}. A student asks why it matters. What do you say?",
    "Write a quiz with four questions about {x} and give the answers.",
    "How has {x} changed over the last hundred years?",
    "Draft a plan for a one-hour lesson about {x}.",
    "What would the world be like without {x}?",
    "Write a persuasive paragraph in favour of spending more time on {x}.",
    "Describe a typical day of someone who works with {x}.",
    "Extract the key points: {x} is often mentioned together with {y}, but few people know how "
    "they are connected. Explain the connection.",
    "Turn these notes into a paragraph: {x}; history; why it matters; {y}.",
    "What questions should I ask before I write a report on {x}?",
)
# Second turns, after an answer that the prompt brings along.
_FOLLOW_UPS = (
    "Can you make it shorter?",
    "Give me an example.",
    "Now rewrite it as a list.",
    "Explain that in simpler words.",
    "What would you add for an expert?",
)
_ANSWER = "Here is what I can say about {x}: it is a broad subject, and it helps to begin with a " \
          "simple example and to build on it step by step."


def math_prompts(count: int, seed: int) -> list[dict[str, Any]]:
    """Word problems, equations and calculations with fresh numbers."""
    rng = random.Random(f"{seed}/math")
    prompts = []
    for index in range(count):
        first, second = rng.sample(_NAMES, 2)
        text = rng.choice(_MATH).format(
            n=first, m=second, t=rng.choice(_THINGS), a=rng.randint(40, 400),
            b=rng.randint(4, 40), c=rng.randint(3, 20), d=rng.randint(2, 9),
        )
        messages = [{"role": "user", "content": text}]
        prompts.append({"name": f"math/{seed}/{index}", "messages": messages})
    return prompts


def chat_prompts(count: int, seed: int) -> list[dict[str, Any]]:
    """Requests of everyday use; every fourth is the second turn of a conversation."""
    rng = random.Random(f"{seed}/chat")
    prompts = []
    for index in range(count):
        x, y = rng.sample(_TOPICS, 2)
        messages = [{"role": "user", "content": rng.choice(_CHAT).format(x=x, y=y)}]
        if index % 4 == 3:
            messages += [
                {"role": "assistant", "content": _ANSWER.format(x=x)},
                {"role": "user", "content": rng.choice(_FOLLOW_UPS)},
            ]
        prompts.append({"name": f"chat/{seed}/{index}", "messages": messages})
    return prompts
