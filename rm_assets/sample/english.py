"""How people ask in English, and how a good and a bad assistant answers: a grammar, symbol -> alternatives.

A name in braces is a symbol of this grammar, or a slot that the caller fills ({task}, {topic}). Good and bad
replies share openers, closers and advice on purpose: no single one of these tells them apart.
"""

ASKING = {
    "question": (
        "How do I {task}?",
        "How can I {task}?",
        "What is the best way to {task}?",
        "Could you tell me how to {task}?",
        "I would like to {task}. Where do I start?",
        "My {person} asked me to {task}. How should I go about it?",
        "What should I know before I {task}?",
        "Do you have any advice on how to {task}?",
        "I want to {task} {when}. What do you suggest?",
        "{situation} How do I {task}?",
        "{situation} What would you do to {task}?",
        "{situation} Can you explain how to {task}?",
        "Please help me to {task}. {situation}",
    ),
    "situation": (
        "I have never done this before.",
        "I only have {amount} and little patience.",
        "I tried it {when_before} and it went wrong.",
        "My {person} says that it is easy, but I am not so sure.",
        "I am on a tight budget.",
        "I promised my {person} to take care of it {when}.",
        "I have read three guides and they all disagree.",
        "Please keep it short, I have {amount}.",
        "This is for my {person}, who is a beginner too.",
    ),
    "follow_up": (
        "Thanks! And how do I {task}?",
        "That helps a lot. One more thing: how can I {task}?",
        "Good to know. My {person} also wants to {task}. Any ideas?",
        "I see. What if I want to {task} as well?",
        "Great, I will try that {when}. What is the best way to {task}?",
        "Okay. Next I have to {task}. What should I watch out for?",
    ),
    "person": (
        *("sister", "neighbour", "flatmate", "grandfather", "boss", "best friend", "daughter", "aunt"),
        *("colleague", "brother", "landlady", "teacher", "cousin", "uncle", "mother", "son"),
    ),
    "when": (
        *("this weekend", "before Friday", "tonight", "next week", "tomorrow morning", "on Sunday"),
        *("during the holidays", "after work", "next month", "before my guests arrive"),
    ),
    "when_before": ("last week", "yesterday", "last summer", "twice this month", "on Monday", "a year ago"),
    "amount": ("half an hour", "ten minutes", "an afternoon", "a free evening", "one day", "an hour"),
    "system": (
        "You are a helpful assistant.",
        "You are a friendly assistant who knows a lot about {topic}.",
        "You answer questions about {topic} in a few plain sentences.",
        "You are a patient teacher. Be concrete and brief.",
        "You work at the help desk of a website about {topic}.",
    ),
}

SHARED = {
    "opener": (
        "{yes}, {here}.",
        "{yes}, {here}.",
        "Good question.",
        "That is a common question.",
        "Thanks for asking.",
        "{yes}.",
        "I understand.",
        "Let us see.",
    ),
    "yes": ("Sure", "Of course", "Gladly", "Happy to help", "Certainly", "Yes", "No problem"),
    "here": (
        "here is what {usually} works",
        "this is easier than it looks",
        "a few simple steps are enough",
        "here is how most people do it",
        "you can do that at home",
        "it only takes a little practice",
    ),
    "usually": ("usually", "often", "mostly", "in my experience"),
    "closer": (
        "Let me know how it goes.",
        "I hope that helps.",
        "Good luck!",
        "Have fun with it.",
        "Tell me if you have another question.",
        "Enjoy the rest of your day.",
    ),
}

GOOD = {
    "closing": (
        "If it does not work at first, {check} and try again.",
        "Would you like {offer}?",
        "Tell me more about {detail} and I can be more precise.",
        "Results vary a little, so {check} before you go on.",
        "You will get a feeling for it after {times}.",
        "This is safe to try, and {check} if you are unsure.",
    ),
    "check": (
        "take a short break",
        "go back one step",
        "ask somebody with experience",
        "write down what happened",
        "start with a smaller part",
    ),
    "offer": (
        "a short checklist",
        "an example",
        "a plan for the first week",
        "more detail on one step",
        "a cheaper option",
    ),
    "detail": (
        "your situation",
        "what you have tried",
        "the result you want",
        "your time and budget",
        "what went wrong",
    ),
    "times": ("two or three tries", "a few days", "the second time", "about a week"),
    "connector": (
        "First, ",
        "To begin with, ",
        "Most importantly, ",
        "Start simply: ",
        "It helps to do this: ",
    ),
    "next": ("Then ", "After that, ", "Next, ", "Also, ", "In addition, ", "Finally, "),
}
