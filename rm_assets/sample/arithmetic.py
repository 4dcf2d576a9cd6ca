"""Sums of everyday life: each function draws numbers and gives a task with three true pieces of advice."""

from collections.abc import Callable
from random import Random

Sum = tuple[str, tuple[str, str, str]]


def percentage(rng: Random) -> Sum:
    """So many percent of a number."""
    share, whole = rng.randrange(3, 95), 20 * rng.randrange(3, 60)
    return f"work out {share} percent of {whole}", (
        f"Divide {whole} by 100, which gives {whole / 100:g}.",
        f"Multiply that by {share} and you get {share * whole / 100:g}.",
        f"Check it with ten percent, which is {whole / 10:g}.",
    )


def bill(rng: Random) -> Sum:
    """A restaurant bill with a tip, shared by friends."""
    people, each = rng.randrange(3, 9), rng.randrange(11, 40)
    total = people * each * 10 // 11 * 1.1
    return f"split a bill of {total:.2f} among {people} people", (
        f"Divide {total:.2f} by {people}, which is {total / people:.2f} each.",
        f"Round up to {int(total / people) + 1} if you want to leave a small tip.",
        "Let one person pay by card and the others send the money.",
    )


def distance(rng: Random) -> Sum:
    """Kilometres in miles."""
    kilometres = 5 * rng.randrange(2, 80)
    return f"convert {kilometres} kilometres to miles", (
        f"Multiply {kilometres} by 0.621, which is about {kilometres * 0.621:.0f} miles.",
        "Take five eighths if you have to do it in your head.",
        "Remember that a mile is a bit more than one and a half kilometres.",
    )


def area(rng: Random) -> Sum:
    """The floor of a room."""
    length, width = rng.randrange(3, 12), rng.randrange(2, 9)
    return f"find the area of a room of {length} by {width} metres", (
        f"Multiply length by width: {length} times {width} is {length * width} square metres.",
        f"Order about {length * width * 1.1:.0f} square metres of flooring, a tenth more for the cuts.",
        f"Measure along both walls, since few rooms are exactly {width} metres wide.",
    )


def average(rng: Random) -> Sum:
    """The mean of four marks."""
    marks = [rng.randrange(50, 100) for _ in range(4)]
    named = ", ".join(map(str, marks[:3])) + f" and {marks[3]}"
    return f"calculate the average of {named}", (
        f"Add the four numbers, which gives {sum(marks)}.",
        f"Divide the sum by 4 to get {sum(marks) / 4:g}.",
        f"Compare it with the middle of the list: it has to lie between {min(marks)} and {max(marks)}.",
    )


def temperature(rng: Random) -> Sum:
    """Degrees Celsius in Fahrenheit."""
    celsius = rng.randrange(-20, 45)
    return f"convert {celsius} degrees Celsius to Fahrenheit", (
        f"Multiply {celsius} by 1.8, which is {celsius * 1.8:g}.",
        f"Add 32, and you have {celsius * 1.8 + 32:g} degrees Fahrenheit.",
        "Double it and add 30 if a rough number is enough.",
    )


SUMS: tuple[Callable[[Random], Sum], ...] = (percentage, bill, distance, area, average, temperature)
